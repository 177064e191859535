"""Settings of a model: library, name, weights, preprocessing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from amp.registry import FRAMES
from amp.settings.base import ModelArguments, PathOrName, Precision, Settings, Side, names_of

if TYPE_CHECKING:
    Frame = str
else:
    Frame = names_of(FRAMES)

MODEL_NAME = "model name in the library, path of an open_clip model JSON, or for hf a folder or hub id"
MODEL_WEIGHTS = "weights: a tag of the library or a file; null: random weights, or for hf the weights of the name"


RANDOM = "random"  # What may be typed in the place of weights.

# What a pruning and a distillation record as the name of a dense model that was given as an object.
IN_MEMORY, TEACHER_IN_MEMORY = "model-in-memory", "in-memory"

# Of pixels from 0 to 1, or to 255 where a library counts so.
Level = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-3, le=1000)]


class TransformSettings(Settings):
    input_size: Side | None = Field(
        None, description="side of the square input image in pixels; null here and below: as the weights were trained"
    )
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] | None = Field(
        None, description="side of the centre crop, as a share of the resized image's side"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="filter for resizing")
    mean: tuple[Level, Level, Level] | None = Field(None, description="mean of each channel")
    std: tuple[Deviation, Deviation, Deviation] | None = Field(None, description="standard deviation of each channel")


class ModelSettings(Settings):
    frame: Frame | None = Field(None, description="library that the model comes from; also --frame")
    name: PathOrName = Field(description=MODEL_NAME)
    pretrained: PathOrName | None = Field(None, description=MODEL_WEIGHTS)
    precision: Precision = Field("fp32", description="precision of the frozen weights")
    kwargs: ModelArguments = Field({}, description="arguments for the library's factory function (img_size, ...)")
    transform: TransformSettings = TransformSettings()

    @property
    def weights(self) -> str | None:
        """Where the weights come from: `pretrained`, or the folder in `name`."""
        return self.pretrained or (self.name if Path(self.name).is_dir() else None)


def library_before(model: str) -> tuple[Frame | None, str]:
    """`timm/NAME`, as users type it -> (library, name in it); (None, `model`) without the prefix of a library."""
    prefix, slash, name = model.partition("/")
    return (prefix, name) if slash and name and prefix in FRAMES.names and not Path(model).exists() else (None, model)


class GivenModelSettings(Settings):
    """Settings of a model that is given as an object; values that are None are read from the object."""

    frame: Frame | None = Field(None, description="library that the model comes from")
    name: PathOrName | None = Field(None, description=MODEL_NAME)
    kwargs: ModelArguments | None = Field(
        None, description="arguments that the library's factory function was called with (img_size, ...)"
    )
    transform: TransformSettings = TransformSettings()

"""Settings of a model: library, name, weights, preprocessing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from amp.registry import FRAMES
from amp.settings.base import Count, Positive, Precision, Settings, names_of

if TYPE_CHECKING:
    Frame = str
else:
    Frame = names_of(FRAMES)

MODEL_NAME = "the library's model name, an open_clip model JSON, or for hf a folder or hub id"
MODEL_WEIGHTS = "weights: a tag of the library or a file; null: random, for hf those of the name"


class TransformSettings(Settings):
    input_size: Count | None = Field(None, description="side of the square input in pixels")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="centre crop / resized side")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="resize filter")
    mean: tuple[float, float, float] | None = Field(None, description="per-channel mean")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="per-channel deviation")


class ModelSettings(Settings):
    frame: Frame | None = Field(None, description="library the model comes from; also --frame")
    name: str = Field(description=MODEL_NAME)
    pretrained: str | None = Field(None, description=MODEL_WEIGHTS)
    precision: Precision = Field("fp32", description="precision of the frozen weights")
    kwargs: dict[str, Any] = Field({}, description="passed to the library's factory (img_size, ...)")
    transform: TransformSettings = TransformSettings()

    @property
    def weights(self) -> str | None:
        """Where the weights come from; a folder as a name holds its own."""
        return self.pretrained or (self.name if Path(self.name).is_dir() else None)

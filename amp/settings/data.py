"""Settings of the images: layout on disk, batches, order."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from amp.registry import LAYOUTS
from amp.settings.base import ASIDE, MOST_WORKERS, PathOrName, Seed, Settings, names_of

if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = names_of(LAYOUTS)


class DataSettings(Settings):
    name: DatasetName = Field(description="layout of the images on disk")
    root: PathOrName = Field(description="folder of the dataset; for webdataset also a pattern, train-{000..127}.tar")
    batch_size: Annotated[int, Field(ge=2, le=10**6)] = Field(description="images in one batch, over all processes")
    shuffle: bool = Field(True, description="one fixed shuffle of the images, by seed")
    seed: Seed = Field(0, description="seed of the shuffle and the augmentation")
    num_workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = Field(
        4, description="loader workers per process", **ASIDE
    )
    strict: bool = Field(False, description="stop at a broken image instead of skipping it")
    max_broken: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="a run ends at more than this share of broken images", **ASIDE
    )
    compare_times: bool = Field(
        True,
        description="take an image file with another time for another one; false where files are copied without times",
        **ASIDE,
    )

"""Settings of the images: layout on disk, batches, order."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from amp.registry import LAYOUTS
from amp.settings.base import ASIDE, MOST_WORKERS, PathOrName, Seed, Settings, names_of

if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = names_of(LAYOUTS)

SMALLEST_BATCH = 2


def batch_within(batch_size: int, *counts: object) -> int:
    """A batch size that nobody has asked for, lowered to the numbers of images among `counts`."""
    return max(SMALLEST_BATCH, min([batch_size, *(count for count in counts if isinstance(count, int))]))


class DataSettings(Settings):
    name: DatasetName = Field(description="layout of the images on disk")
    root: PathOrName = Field(
        description="folder of the dataset; for webdataset also a pattern such as train-{000..127}.tar"
    )
    batch_size: Annotated[int, Field(ge=SMALLEST_BATCH, le=10**6)] = Field(
        description="images in one batch, over all processes"
    )
    shuffle: bool = Field(True, description="shuffle the images once, in an order that data.seed fixes")
    seed: Seed = Field(0, description="random seed of the shuffle and the augmentation")
    num_workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = Field(
        4, description="worker processes that read images, for each process", **ASIDE
    )
    strict: bool = Field(False, description="stop at the first broken image instead of skipping it")
    max_broken: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="stop if the share of broken images exceeds this value", **ASIDE
    )
    compare_times: bool = Field(
        True,
        description="treat an image file with a new modification time as changed; false: ignore the times",
        **ASIDE,
    )

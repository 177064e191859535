"""The settings that every script has: a dense model and an output folder."""

from typing import TYPE_CHECKING, Self

from pydantic import Field

from amp.settings.base import PathOrName, Settings
from amp.settings.data import DataSettings
from amp.settings.model import Frame, ModelSettings


class OutputSettings(Settings):
    dir: PathOrName = Field(description="folder that the run writes to")


class RunConfig(Settings):
    """Settings of a script that works in a folder."""

    if TYPE_CHECKING:  # Each declares its own; `output` as the last of its groups.
        data: DataSettings
        output: OutputSettings

    @property
    def dense(self) -> ModelSettings:
        """The dense model, in fp32 if a run uses it in several precisions."""
        raise NotImplementedError

    def with_frame(self, frame: Frame | None) -> Self:
        """The same settings with the dense model's frame filled in if it was None."""
        raise NotImplementedError

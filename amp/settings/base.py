"""What all settings are made of: the frozen base and the bounds of numbers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16"]


Count = Annotated[int, Field(ge=1)]


Positive = Annotated[float, Field(gt=0)]


Share = Annotated[float, Field(ge=0)]


Target = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OutputSettings(Settings):
    dir: str = Field(description="folder of the run")

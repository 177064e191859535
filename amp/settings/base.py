"""What all settings are made of: the frozen base, the bounds of numbers, the names of registries."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from amp.registry import Registry

Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

# Of a setting that leaves a run's result as it is, up to rounding: how images are read, how work is divided.
ASIDE: dict[str, Any] = {"json_schema_extra": {"decides the result": False}}


def names_of(registry: Registry, *more: str) -> Any:
    """The type of a setting that names one of a registry's files, or one of `more`."""
    return Literal[(*more, *registry.names)]


class Settings(BaseModel):
    """Base of all settings: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def decisive(self, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """What decides a run's result, JSON-able: all settings but those marked with `ASIDE` and those left out."""
        dumped = self.model_dump(mode="json")
        kept = {}
        for key, field in type(self).model_fields.items():
            if field.json_schema_extra != ASIDE["json_schema_extra"] and key not in leave_out:
                value = getattr(self, key)
                kept[key] = value.decisive() if isinstance(value, Settings) else dumped[key]
        return kept

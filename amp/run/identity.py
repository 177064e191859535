"""What decides a run's result, and in what two runs differ."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from amp.errors import UserError
from amp.run.files import file_sha256

# Settings that leave a run's result as it is, up to rounding.
READING = {"num_workers", "max_broken"}


STORING = {"store", "store_every"}


WORKING = {"parallel", "accumulate", "activation_checkpointing", "compile", "step_in_backward"}


DIVIDING = {"micro_batch", "save_every"}


def check_same_run(artifact: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming the first setting in which `artifact` was made by another run."""
    difference = first_difference(recorded, wanted)
    if difference:
        key, old, new = difference
        raise UserError(
            "output.dir",
            f"{artifact.parent} holds another run: {artifact.name} was made with {key} = {old!r}, "
            f"asked for {new!r}; choose another output.dir or delete {artifact}",
        )


def first_difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, recorded value, wanted value) of the first setting, or weights digest, in which two runs differ."""
    old, new = (
        _flatten({"settings": r.get("settings", {}), "pretrained_sha256": r.get("pretrained_sha256")})
        for r in (recorded, wanted)
    )
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key):
            return key.removeprefix("settings."), old.get(key), new.get(key)
    return None


def describe(config: BaseModel, pretrained: str | None, leave_out: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """What decides a run's result, for its artifacts: settings, digest of the weights file, versions.

    Left out: where the output goes, how the images are read, where blocks' inputs are kept, and how the work of a step
    is divided.
    """
    exclude: Any = {"output": True, "data": READING, "score": DIVIDING, "prune": STORING, "optim": WORKING}
    settings = config.model_dump(mode="json", exclude={**exclude, **dict.fromkeys(leave_out, True)})
    return {
        "settings": settings,
        "pretrained_sha256": file_sha256(pretrained),
        **more,
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm", "transformers")
        },
    }


def recorded_frame(record: Mapping[str, Any]) -> Any:
    """The frame that a run's record names; None where it names none."""
    try:
        return record["settings"]["model"]["frame"]
    except (KeyError, TypeError):
        return None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat

"""Laws of damaged model folders and of foreign weights: one line that names the file, never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.model_folders import WIDTHS
from safetensors.torch import load_file, save_file

from amp.errors import UserError
from amp.models.folder import is_model_folder, load_tower
from amp.models.open import open_tower
from amp.settings.model import ModelSettings
from amp.towers import Tower

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.001, 0.5, 0.999999])
def test_truncated_weights_are_refused(folder: Path, edit: Callable[..., None], share: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path}: is damaged" in refusal(lambda: load_tower(folder))
    edit(..., "weights_sha256")
    assert f"{path}: cannot be read" in refusal(lambda: load_tower(folder))


def test_one_other_bit_of_the_weights_is_damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{path}: is damaged" in refusal(lambda: load_tower(folder))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    message = refusal(lambda: load_tower(folder))
    assert str(folder) in message
    assert missing in message
    assert is_model_folder(str(folder)) == (missing != "config.json")


def test_what_is_no_folder_is_refused(tmp_path: Path, golden_model: ModelSettings) -> None:
    for path in (tmp_path / "none", Path(golden_model.name)):
        assert str(path) in refusal(lambda path=path: load_tower(path))
    assert "config.json" in refusal(lambda: open_tower(str(tmp_path)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": 1}', '{"a": 1}', "\x00", "not json", '{"format": NaN}']
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(lambda: load_tower(folder))


@pytest.mark.parametrize("value", [0, 2, "1", None])
def test_another_format_is_refused(folder: Path, edit: Callable[..., None], value: Any) -> None:
    edit(value, "format")
    message = refusal(lambda: load_tower(folder))
    assert str(folder / "config.json") in message
    assert "format" in message


KEPT: dict[str, Callable[[list[list[int]]], Any]] = {
    "a repeated neuron": lambda kept: [*kept[:4], [*kept[4][:-1], kept[4][0]]],
    "a neuron too high": lambda kept: [*kept[:4], [*kept[4][:-1], 256]],
    "a negative neuron": lambda kept: [*kept[:4], [-1, *kept[4][1:]]],
    "no neuron": lambda kept: [*kept[:4], []],
    "one block too few": lambda kept: kept[:4],
    "one block too many": lambda kept: [*kept, [0]],
    "one neuron too few": lambda kept: [*kept[:4], kept[4][:-1]],
    "one neuron too many": lambda kept: [[*kept[0], next(i for i in range(256) if i not in kept[0])], *kept[1:]],
    "a fraction": lambda kept: [*kept[:4], [0.5, *kept[4][1:]]],
    "a text": lambda kept: [*kept[:4], "all"],
}


@pytest.mark.parametrize("damage", KEPT)
def test_wrong_kept_indices_are_refused(
    folder: Path, kept: list[list[int]], edit: Callable[..., None], damage: str
) -> None:
    edit(KEPT[damage](kept), "kept")
    assert str(folder) in refusal(lambda: load_tower(folder))


@pytest.mark.parametrize("widths", [[8, 256, 31, 1, 99], [8, 256, 31, 1], []])
def test_widths_that_are_not_those_of_the_kept_neurons_are_refused(
    folder: Path, edit: Callable[..., None], widths: list[int]
) -> None:
    edit(widths, "widths")
    message = refusal(lambda: load_tower(folder))
    assert str(folder / "config.json") in message
    assert "widths" in message


def paths_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key path below a JSON object."""
    found = [path] if path else []
    for key, below in value.items() if isinstance(value, dict) else ():
        found += paths_of(below, (*path, key))
    return found


@pytest.mark.parametrize("value", [..., None, "text", -1, [], {}, {"x": 1}], ids=repr)
def test_no_damage_to_the_base_model_gives_a_traceback(
    folder: Path, edit: Callable[..., None], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting or replacing any one value gives a tower or one line, never another exception."""
    original = (folder / "config.json").read_bytes()
    surprises = {}
    for keys in paths_of(json.loads(original)["base"], ("base",)):
        (folder / "config.json").write_bytes(original)
        edit(value, *keys)
        try:
            load_tower(folder)
        except UserError as error:
            if "\n" in str(error) or str(folder) not in str(error):
                surprises[".".join(keys)] = str(error)
        except Exception as error:
            surprises[".".join(keys)] = repr(error)[:200]
    assert not surprises, "\n".join(f"{key}: {what}" for key, what in surprises.items())


@pytest.mark.parametrize("weights", ["dense", "another model", "part of it", "more of it", "nothing"])
def test_weights_that_do_not_fit_the_config_are_refused(
    folder: Path, edit: Callable[..., None], golden_model: ModelSettings, weights: str
) -> None:
    edit(..., "weights_sha256")
    path = folder / "model.safetensors"
    own = load_file(path)
    tensors = {
        "dense": load_file(str(golden_model.pretrained)),
        "another model": {"features.0.weight": torch.ones(2, 2)},
        "part of it": {key: value for key, value in own.items() if "ln_post" not in key},
        "more of it": own | {"visual.head.weight": torch.ones(2)},
        "nothing": {},
    }[weights]
    save_file(tensors, path)
    message = refusal(lambda: load_tower(folder))
    assert str(path) in message
    assert "does not fit" in message


def checkpoint_of(kind: str, tower: Tower, path: Path) -> None:
    """Writes a --pretrained file that holds no weights of the tower's model."""
    values: dict[str, Any] = {
        "a list": [1, 2],
        "an empty dict": {},
        "a tensor": torch.zeros(3),
        "a dict of numbers": {1: 2},
        "a state_dict of None": {"state_dict": None},
        "another model": {"features.0.weight": torch.ones(2, 2)},
        "other shapes": {key: torch.ones(*value.shape, 2) for key, value in tower.model.state_dict().items()},
    }
    raw: dict[str, bytes] = {"no bytes": b"", "text": b"hello", "noise": bytes(range(256)) * 9}
    if kind in values:
        torch.save(values[kind], path)
    elif kind in raw:
        path.write_bytes(raw[kind])
    elif kind == "half a file":
        torch.save(tower.model.state_dict(), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "a folder":
        path.mkdir()


@pytest.mark.parametrize(
    "kind",
    [
        "a list",
        "an empty dict",
        "a tensor",
        "a dict of numbers",
        "a state_dict of None",
        "another model",
        "other shapes",
        "no bytes",
        "text",
        "noise",
        "half a file",
        "a folder",
        "no file",
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    golden_model: ModelSettings, tower: Tower, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_of(kind, tower, path)
    message = refusal(lambda: open_tower(golden_model.name, "open_clip", str(path)))
    assert str(path) in message
    assert "pretrained" in message


def test_a_pruned_folder_does_not_pass_for_another_model(folder: Path, golden_model: ModelSettings) -> None:
    assert open_tower(golden_model.name, pretrained=str(folder)).widths == WIDTHS
    assert open_tower(None, pretrained=str(folder)).widths == WIDTHS
    assert open_tower(str(folder)).widths == WIDTHS
    message = refusal(lambda: open_tower("ViT-B-32", pretrained=str(folder)))
    assert str(folder) in message
    assert "'ViT-B-32'" in message
    assert "--model" in refusal(lambda: open_tower(None))

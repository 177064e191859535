"""Laws of the model folder: it comes back bit for bit, describes itself, runs no code, is whole or not there."""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import amp
from amp import checkpoint
from amp.checkpoint import is_model_folder, load_tower, open_tower, read_folder_config, save_tower
from amp.config import ModelSettings
from amp.errors import UserError
from amp.towers import Tower, build_tower

WIDTHS = [8, 256, 31, 1, 100]
PROVENANCE = {"settings": {"prune": {"entropy_increase": 0.01}}, "note": "é"}


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prune(tower: Tower) -> list[list[int]]:
    """Slices to widths of all kinds; neurons from anywhere."""
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randperm(256, generator=generator)[:width].sort().values for width in WIDTHS]
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        slot.keep(kept_K)
    return [kept_K.tolist() for kept_K in kept]


@pytest.fixture
def kept(tower: Tower) -> list[list[int]]:
    return prune(tower)


@pytest.fixture
def folder(tower: Tower, kept: list[list[int]], tmp_path: Path) -> Path:
    """A saved pruned model."""
    path = tmp_path / "out" / "pruned"
    save_tower(tower, kept, PROVENANCE, path)
    return path


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """edit(value, *keys) sets, edit(..., *keys) deletes, a value of the folder's config.json."""

    def edit_config(value: Any, *keys: str) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        group = config
        for key in keys[:-1]:
            group = group[key]
        if value is ...:
            del group[keys[-1]]
        else:
            group[keys[-1]] = value
        path.write_text(json.dumps(config))

    return edit_config


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        value.dtype == second[key].dtype and torch.equal(value, second[key]) for key, value in first.items()
    )


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip()
    return message


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.sentinel,))


# ---------------------------------------------------------------- round trip


def test_a_tower_comes_back_bit_for_bit(tower: Tower, folder: Path) -> None:
    loaded = load_tower(folder)
    assert loaded.widths == WIDTHS
    assert same_state(loaded.model, tower.model)
    assert torch.equal(loaded.feature(images()), tower.feature(images()))
    assert torch.equal(loaded.model.encode_image(images()), tower.model.encode_image(images()))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    for slot in loaded.slots:
        (in_projection,) = slot.in_projections
        assert in_projection.out_features == slot.out_projection.in_features == slot.hidden_width


def test_a_second_save_gives_the_same_bytes(tower: Tower, kept: list[list[int]], folder: Path, tmp_path: Path) -> None:
    save_tower(tower, kept, PROVENANCE, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    save_tower(load_tower(folder), kept, PROVENANCE, tmp_path / "loaded")
    assert contents(tmp_path / "loaded") == contents(folder)


def test_the_folder_holds_the_binding_files_and_what_they_promise(folder: Path, kept: list[list[int]]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["widths"] == WIDTHS
    assert config["kept"] == kept
    assert config["provenance"] == PROVENANCE
    assert config["base"]["frame"] == "open_clip"
    assert config["base"]["name"].endswith("tiny-clip.json")
    tensors = load_file(folder / "model.safetensors")
    assert any(key.startswith("visual.") for key in tensors)
    assert "token_embedding.weight" in tensors, "the text tower is part of the whole model"
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_a_tower_with_factory_arguments_and_a_transform_comes_back(tmp_path: Path, golden_model: ModelSettings) -> None:
    transform = {"crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    settings = ModelSettings.model_validate_json(
        json.dumps({"name": golden_model.name, "kwargs": {"img_size": 48}, "transform": transform})
    )
    tower = build_tower(settings)
    save_tower(tower, prune(tower), {}, tmp_path / "pruned")
    loaded = load_tower(tmp_path / "pruned")
    assert loaded.image_size == tower.image_size == 48
    assert same_state(loaded.model, tower.model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    assert torch.equal(loaded.transform(image), tower.transform(image))
    assert not torch.equal(loaded.transform(image), build_tower(golden_model).transform(image.resize((48, 48))))
    images_BCHW = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded.feature(images_BCHW), tower.feature(images_BCHW))


def test_the_transform_is_the_one_that_was_saved(folder: Path, edit: Callable[..., None]) -> None:
    """A library's tag brings means of its own; without the tag they are in the folder alone."""
    edit([0.1, 0.2, 0.3], "base", "preprocess", "mean")
    edit([0.5, 0.25, 0.125], "base", "preprocess", "std")
    white_CHW = load_tower(folder).transform(Image.new("RGB", (50, 40), (255, 255, 255)))
    expected_C11 = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.125]).view(3, 1, 1)
    torch.testing.assert_close(white_CHW, expected_C11.expand(3, 32, 32))


def test_precision_is_kept_or_overridden(
    folder: Path, tower: Tower, tmp_path: Path, golden_model: ModelSettings
) -> None:
    assert load_tower(folder).dtype == torch.float32

    low = load_tower(folder, precision="bf16")
    assert low.dtype == torch.bfloat16
    assert all(linear.weight.dtype == torch.bfloat16 for slot in low.slots for linear in slot.in_projections)
    assert low.widths == WIDTHS
    expected_BD, found_BD = tower.feature(images()), low.feature(images().bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(found_BD, expected_BD).min() > 0.99

    saved = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    save_tower(saved, prune(saved), {}, tmp_path / "bf16")
    loaded = load_tower(tmp_path / "bf16")
    assert loaded.dtype == torch.bfloat16
    assert same_state(loaded.model, saved.model)
    high = load_tower(tmp_path / "bf16", precision="fp32")
    assert high.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in high.model.parameters())


def test_load_pruned_gives_a_model_a_transform_and_a_tokenizer_that_work(tower: Tower, folder: Path) -> None:
    model, transform, tokenizer = amp.load_pruned(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    pixels_CHW = transform(image)
    assert pixels_CHW.shape == (3, 32, 32)
    assert pixels_CHW.dtype == torch.float32
    assert torch.equal(pixels_CHW, tower.transform(image))
    tokens = tokenizer(["a digit"])
    assert tokens.shape == (1, 8), "the context length is the model's own"
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels_CHW[None]), tower.model.encode_image(pixels_CHW[None]))
        # The tiny text tower's vocabulary is smaller than the tokenizer's.
        assert model.encode_text(tokens.clamp(max=511)).shape == (1, 48)


def test_a_folder_describes_itself(golden_model: ModelSettings, tmp_path: Path) -> None:
    """The model JSON and the weights are gone, the folder is moved, the process and its folder are other ones."""
    source = tmp_path / "source" / "mine.json"
    source.parent.mkdir()
    shutil.copy(golden_model.name, source)
    tower = build_tower(golden_model.model_copy(update={"name": str(source)}))
    save_tower(tower, prune(tower), {}, tmp_path / "pruned")
    shutil.rmtree(source.parent)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pruned").rename(tmp_path / "elsewhere" / "moved")
    script = (
        "import sys, torch, amp; model, transform, tokenizer = amp.load_pruned('moved');"
        "images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0));"
        "torch.save(model.encode_image(images), 'features.pt')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "elsewhere", env=environment, check=True, timeout=120)
    found_BD = torch.load(tmp_path / "elsewhere" / "features.pt", weights_only=True)
    torch.testing.assert_close(found_BD, tower.model.encode_image(images()), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- no code runs


@pytest.mark.parametrize("kind", ["pickle", "torch file", "legacy torch file"])
def test_weights_that_are_a_pickle_do_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    evil = Evil(tmp_path / "sentinel")
    buffer = io.BytesIO()
    if kind == "pickle":
        pickle.dump(evil, buffer)
    else:
        torch.save({"visual.proj": evil}, buffer, _use_new_zipfile_serialization=kind == "torch file")
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    assert str(folder / "model.safetensors") in refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.pth", "evil.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch file", "legacy torch file"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning:torch._weights_only_unpickler")
def test_a_checkpoint_that_wants_to_run_code_is_refused(
    golden_model: ModelSettings, tmp_path: Path, name: str, kind: str
) -> None:
    evil, path = Evil(tmp_path / "sentinel"), tmp_path / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({"state_dict": evil}, path, _use_new_zipfile_serialization=kind == "torch file")
    message = refusal(lambda: open_tower(golden_model.name, "open_clip", str(path)))
    assert str(path) in message
    assert "pretrained" in message
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("key", ["pretrained_image_path", "pretrained_text_path"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning:torch._weights_only_unpickler")
def test_a_config_cannot_make_the_library_unpickle(
    folder: Path, tmp_path: Path, edit: Callable[..., None], key: str
) -> None:
    """The library's factory takes a file to load and a switch that lets it run: a folder must reach neither."""
    evil = folder / "evil.pt"
    evil.write_bytes(pickle.dumps(Evil(tmp_path / "sentinel")))
    edit({key: str(evil), "weights_only": False}, "base", "kwargs")
    message = refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()
    assert "config.json" in message


def test_a_config_cannot_make_the_tokenizer_run_code(
    folder: Path, tmp_path: Path, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers runs a tokenizer's own Python file if told to trust it; a folder must not be able to tell it."""
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "config.json").with_name("tokenizer.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'sentinel')!r})\n"
        "from transformers import PreTrainedTokenizer\nclass Evil(PreTrainedTokenizer): pass\n"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenizer.Evil", None]}})
    )
    edit(str(folder), "base", "model_config", "text_cfg", "hf_tokenizer_name")
    edit({"trust_remote_code": True}, "base", "model_config", "text_cfg", "tokenizer_kwargs")
    with contextlib.suppress(Exception):
        amp.load_pruned(folder)
    assert not (tmp_path / "sentinel").exists()


def test_a_config_that_is_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_bytes(pickle.dumps(Evil(tmp_path / "sentinel")))
    assert str(folder / "config.json") in refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()


# ---------------------------------------------------------------- damaged folders


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.001, 0.5, 0.999999])
def test_truncated_weights_are_refused(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(lambda: load_tower(folder))
    assert str(path) in message
    assert "cannot be read" in message


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
    "nothing": lambda kept: None,
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
    folder: Path, golden_model: ModelSettings, weights: str
) -> None:
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


# ---------------------------------------------------------------- atomic


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["before the weights", "amid the weights", "before the config"])
def test_an_interrupted_save_leaves_the_old_folder_whole_and_nothing_beside_it(
    tower: Tower,
    kept: list[list[int]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: type[BaseException],
) -> None:
    before = contents(folder)
    write = checkpoint.write_tensors

    def failing(path: Path, *args: Any) -> None:
        if at == "amid the weights":
            path.write_bytes(b"half")
        elif at == "before the config":
            write(path, *args)
        raise error

    monkeypatch.setattr(checkpoint, "write_tensors", failing)
    with torch.no_grad():
        tower.slots[0].out_projection.weight.add_(1.0)
    with pytest.raises(error):
        save_tower(tower, kept, {}, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(error):
        save_tower(tower, kept, {}, folder.parent / "new")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_save_replaces_the_old_folder(tower: Tower, kept: list[list[int]], folder: Path) -> None:
    (folder / "stray.txt").write_text("from another version")
    with torch.no_grad():
        tower.slots[0].out_projection.weight.add_(1.0)
    save_tower(tower, kept, {"new": True}, folder)
    assert read_folder_config(folder).provenance == {"new": True}
    assert same_state(load_tower(folder).model, tower.model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("leftover", ["folder", "file"])
def test_a_killed_runs_leftovers_do_not_stop_the_next_run(
    tower: Tower, kept: list[list[int]], folder: Path, leftover: str
) -> None:
    """In a container the next run has the same process id, so it meets its own name."""
    with checkpoint.atomic(folder) as partial:
        name = partial.name
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    stale = folder.with_name(name)
    if leftover == "folder":
        stale.mkdir()
        (stale / "half.safetensors").write_bytes(b"half")
    else:
        stale.write_bytes(b"half")
    save_tower(tower, kept, PROVENANCE, folder)
    assert same_state(load_tower(folder).model, tower.model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_kept_neurons_must_be_those_of_the_tower(tower: Tower, kept: list[list[int]], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        save_tower(tower, [*kept[:4], [1, 2]], {}, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()

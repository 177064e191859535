"""Laws of a run's files: one run holds a folder, what killed runs left goes, and no change of a byte passes unseen."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, refusal

from amp.errors import UserError
from amp.run.files import alone_in, atomic
from amp.run.options import check_outside_models, prepare_output
from amp.run.sealed import append_line, read_json, read_lines, read_tensors, write_json, write_tensors

HOLD = """
import sys, time
from pathlib import Path
from amp.run.files import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_holds_a_folder_and_a_killed_one_lets_it_go(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = refusal(lambda: alone_in(folder).__enter__())
        assert message.startswith(f"output.dir: {folder} is in use by process {other.pid} on ")
        other.kill()
        other.wait()
    (folder / ".pruned.123.partial").mkdir()
    (folder / ".prune.png.123.partial").write_text("left")
    (folder / ".pruned.oldabc").mkdir()
    with alone_in(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"], "what the killed run left stays"
    assert list(folder.iterdir()) == []


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path: Path) -> None:
    with alone_in(prepare_output(str(tmp_path / "a" / "b"))):
        pass
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").write_text("")
    assert (tmp_path / "a" / "b" / "result").exists()


def test_partial_files_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone, alive = tmp_path / ".x.json.999999999.partial", tmp_path / ".x.json.1.partial"
    for left in (gone, alive):
        left.write_text("")
    with atomic(tmp_path / "x.json") as partial:
        partial.write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "x.json"]


KNOWN = {"widths", "entropies", "share", "probes", "name", "settings", "a", "b"}


def _known(value: Any) -> Any:
    """Without a key that nothing reads: the name of the checksum itself may be damaged."""
    if isinstance(value, dict):
        return {key: entry for key, entry in value.items() if key in KNOWN}
    return type(value)(map(_known, value)) if isinstance(value, (list, tuple)) else value


def _tensors(path: Path) -> Any:
    header, tensors = read_tensors(path)
    return header, {name: tensor.tolist() for name, tensor in tensors.items()}


def _lines(path: Path) -> list[Any]:
    found: list[Any] = []
    read_lines(path, lambda number, value: found.append(value), "delete it")
    return found


def _write_lines(path: Path) -> None:
    for value in ({"widths": [3, 4], "entropies": [0.25, 1e-17]}, {"widths": [3, 2], "share": 0.5}):
        append_line(path, value)


RECORD = {"widths": [3, 4], "probes": [[0, 3, 0.1], [1, 4, 1e-300]], "name": "é", "settings": {"a": {"b": None}}}
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "x.json": (lambda path: write_json(path, RECORD), read_json),
    "x.jsonl": (_write_lines, _lines),
    "x.safetensors": (
        lambda path: write_tensors(path, {"a": torch.arange(3.0), "b": torch.ones(2, 2).bfloat16()}, RECORD),
        _tensors,
    ),
}


def _read_or_message(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", KINDS)
def test_no_change_of_a_bit_passes_unseen(name: str, tmp_path: Path) -> None:
    write, read = KINDS[name]
    path = tmp_path / name
    write(path)
    right, content = read(path), path.read_bytes()
    for place in range(len(content)):
        for bit in (0, 4, 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            found = _read_or_message(read, path)
            if isinstance(found, str):
                assert found.startswith(f"{path}: ")
                assert "\n" not in found
            elif place == len(content) - 1 and isinstance(right, list):
                assert found == right[:-1], "a line without its end was not written to its end"
            else:
                assert _known(found) == right, f"bit {bit} of byte {place}"
    again = tmp_path / f"again.{path.suffix}"
    write(again)
    assert again.read_bytes() == content


def test_records_are_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", RECORD)
    text = (tmp_path / "x.json").read_text()
    assert '\n "widths": [3, 4],\n' in text
    assert text.count("\n") == 14
    assert {key: value for key, value in json.loads(text).items() if key != "checksum"} == RECORD


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, "9" * 5000, "\0", '"']
)
def test_what_is_no_record_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    message = refusal(lambda: read_json(path, "delete it"))
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete it")


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        (("config.json", "model.safetensors"), True),
        (("config.json", "pytorch_model-00001-of-00002.bin"), True),
        (("amp.json", "open_clip_model.safetensors"), True),
        (("config.json", "scores.safetensors"), False),
        (("model.safetensors",), False),
    ],
)
def test_a_run_in_the_folder_of_a_model_is_refused(tmp_path: Path, files: tuple[str, ...], refused: bool) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in files:
        (model / name).touch()
    (tmp_path / "link").symlink_to(model)
    check_outside_models(tmp_path)
    for folder, where in ((model, "is"), (model / "a" / "b", "is inside"), (tmp_path / "link" / "a", "is inside")):
        if refused:
            says = refusal(lambda folder=folder: check_outside_models(folder))
            way_out = f"{where} the folder of a model, {model}; choose one outside it, such as {model}-run"
            assert says == f"output.dir: {folder} {way_out}"
        else:
            check_outside_models(folder)

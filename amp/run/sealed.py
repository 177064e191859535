"""Files that tell when they are damaged: JSON records, lines of JSON and named tensors, each with a checksum.

What was written before there were checksums is read without one.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amp.errors import UserError
from amp.run.files import BESIDE, CONFIG, MODEL, atomic, file_sha256

CHECKSUM = "checksum"
WEIGHTS_DIGEST = "weights_sha256"
HEADER = "amp"  # The one key of a tensor file's metadata: of several, safetensors writes a random order.
UNREADABLE = (OSError, ValueError, RecursionError)


def description_of(folder: Path) -> Path:
    """The file by which a model folder describes itself: `config.json`; where that is a library's alone, `amp.json`."""
    beside = folder / BESIDE
    return beside if beside.exists() else folder / CONFIG


def is_there(path: Path) -> bool:
    """Whether an output is there; a folder's `config.json`, with the folder's description of itself, damaged or not."""
    if path.name != CONFIG or not path.exists():
        return path.exists()
    try:
        return "provenance" in json.loads(description_of(path.parent).read_text(encoding="utf-8"))
    except (*UNREADABLE, TypeError):
        return True


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object with its checksum, written beside and renamed. Raises ValueError where a number is not finite."""
    with atomic(path) as partial:
        partial.write_text(_layout({**value, CHECKSUM: _checksum(value)}) + "\n", encoding="utf-8")


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """A JSON object without its checksum.

    Args:
        advice: what to do about a damaged file.
    Raises:
        UserError: no JSON object, or it is not as it was written.
    """
    then = f"; {advice}" if advice else ""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UserError(path, f"cannot be read ({_reason(error)}){then}") from None
    if not isinstance(value, dict):
        raise UserError(path, f"expected a JSON object{then}")
    recorded = value.pop(CHECKSUM, None)
    if recorded not in (None, _checksum(value)):
        accept = f"to accept it as it is, delete its key {CHECKSUM!r}"
        raise UserError(path, f"is damaged, or was edited since it was written (checksum mismatch){then}; {accept}")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError for NaN and Infinity too, which are no JSON."""
    return json.loads(text, parse_constant=_refuse_constant)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """A line of JSON with its checksum, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**value, CHECKSUM: _short_checksum(value)}, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, take: Callable[[int, Any], None], advice: str) -> None:
    """Hands the lines of a file of JSON to `take`, numbered from 0; drops a last one that was not written to its end.

    Args:
        take: raises ValueError, KeyError, TypeError or AttributeError where a line is not as it should be; a UserError
            of its own, of a file that is another run's for example, leaves the file as it is.
        advice: what to do about a damaged file.
    Raises:
        UserError: a line before the last one is damaged, or there is none.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(path, f"cannot be read ({_reason(error)}); {advice}") from None
    whole = text[: text.rfind("\n") + 1]
    for number, line in enumerate(whole.split("\n")[:-1] or [""]):
        _take_line(path, number, line, take, advice)
    if len(whole) < len(text):
        os.truncate(path, len(whole.encode()))


def read_first_line(path: Path, take: Callable[[int, Any], None], advice: str) -> None:
    """Hands the first line to `take`, as `read_lines`; leaves the file as it is, which a run may be writing."""
    try:
        with path.open("rb") as file:
            line = file.readline().decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(path, f"cannot be read ({_reason(error)}); {advice}") from None
    _take_line(path, 0, line if line.endswith("\n") else "", take, advice)


def _take_line(path: Path, number: int, line: str, take: Callable[[int, Any], None], advice: str) -> None:
    try:
        value = parse_json(line)
        if value.pop(CHECKSUM, None) not in (None, _short_checksum(value)):
            raise ValueError("checksum mismatch")
        take(number, value)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(path, f"line {number + 1} is damaged ({error}); {advice}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """A safetensors file, on the CPU, readable by whom the user's umask allows; equal contents give equal bytes.

    Args:
        header: JSON-able, kept in the file with a checksum of it and of the tensors; None keeps neither.
    """
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    sealed = None if header is None else {HEADER: json.dumps({**header, CHECKSUM: _tensor_checksum(header, own)})}
    # The library writes beside the name it is given, under one of its own that a kill leaves behind.
    beside = path.with_name(f"{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        save_file(own, beside / path.name, sealed or {})
        (beside / path.name).replace(path)
    finally:
        shutil.rmtree(beside)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_tensor_header(path: Path, advice: str = "") -> dict[str, Any]:
    """The header of a file of `write_tensors`, of which the tensors are not read. Raises UserError."""
    with _reading(path, advice), safe_open(path, framework="pt") as file:
        header = dict(parse_json((file.metadata() or {})[HEADER]))
    header.pop(CHECKSUM, None)
    return header


def read_tensors(path: Path, advice: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, on the CPU, of a file of `write_tensors`.

    Args:
        advice: what to do about a file that cannot be read.
    Raises:
        UserError: unreadable, without a header, or not as it was written.
    """
    with _reading(path, advice), safe_open(path, framework="pt") as file:
        header = dict(parse_json((file.metadata() or {})[HEADER]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header.pop(CHECKSUM, None) not in (None, _tensor_checksum(header, tensors)):
        raise UserError(path, f"is damaged (checksum mismatch){advice and f'; {advice}'}")
    return header, tensors


def check_whole(path: Path, advice: str = "") -> None:
    """Raises UserError where an output is not as it was written: a record, a file of tensors, a folder's weights."""
    config = description_of(path.parent)
    if path.name == CONFIG:
        read_json(config, advice)
    elif path.suffix == ".json":
        read_json(path, advice)
    elif path.name == MODEL and config.exists():
        check_digest(path, read_json(config, advice).get(WEIGHTS_DIGEST), advice)
    else:
        read_tensors(path, advice)


def check_digest(path: Path, recorded: object, advice: str = "") -> None:
    """Raises UserError where a file's sha256 is not the recorded one; None was recorded for older files."""
    then = f"; {advice}" if advice else ""
    if not path.exists():
        raise UserError(path, f"no such file{then}")
    if recorded is not None and file_sha256(str(path)) != recorded:
        raise UserError(path, f"is damaged or was replaced (sha256 mismatch){then}")


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """Around the reading of a file of tensors: what is wrong becomes a UserError."""
    try:
        yield
    except (*UNREADABLE, SafetensorError, KeyError, TypeError) as error:
        raise UserError(path, f"cannot be read ({_reason(error)}){advice and f'; {advice}'}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too deeply nested"
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _short_checksum(value: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(_canonical(value)):08x}"


def _tensor_checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(_canonical(header))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _layout(value: Any, pad: str = "") -> str:
    """JSON for people: a line for every entry, and for every list that holds no objects one line, or one a row."""
    inner = pad + " "
    if isinstance(value, Mapping) and value:
        rows = [f"{json.dumps(str(key))}: {_layout(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{pad}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (Mapping, list, tuple)) for entry in value):
        return "[\n" + ",\n".join(inner + _layout(entry, inner) for entry in value) + f"\n{pad}]"
    return json.dumps(value, allow_nan=False)

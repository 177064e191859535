"""log.jsonl: a line a step, cut back to the steps that are done when a run goes on."""

from pathlib import Path

from amp.errors import UserError
from amp.run.console import say
from amp.run.files import atomic
from amp.run.sealed import parse_json

ADVICE = "move it away, and the log begins anew where the run goes on"


def cut_log(path: Path, step: int) -> None:
    """Leaves the lines of the steps before `step`; what a killed run wrote after its last checkpoint is written again.

    Raises:
        UserError: a line that is to stay is damaged, or the file cannot be read.
    """
    kept: list[str] = []
    for number, line in enumerate(_read(path), 1):
        try:
            found = parse_json(line)["step"]
            whole = isinstance(found, int) and line.endswith("\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if whole and found >= step:
            break
        if not whole and number > step:
            break  # by a kill; the step is done again
        if not whole:
            raise UserError(path, f"line {number} is damaged, and steps up to {step} are done; {ADVICE}")
        kept.append(line)
    if len(kept) < step:
        say(f"note: {path} holds {len(kept)} of the {step} steps that are done")
    with atomic(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def _read(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror}); {ADVICE}") from None


def check_board(path: Path) -> None:
    """Raises UserError where TensorBoard's folder cannot be one."""
    if path.exists() and not path.is_dir():
        raise UserError(path, "is a file where TensorBoard's folder is written; move it away")

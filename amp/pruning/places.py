"""The folder of a pruning: `output.dir` of the first one, and below it one for every other size of the same scores."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.errors import UserError
from amp.pruning.measure.journal import other_search
from amp.run.console import called, say
from amp.run.files import PRUNE_RECORD, SCORES, atomic, file_sha256, json_sha256, model_files, room_for
from amp.run.identity import first_difference, in_words, read_header, recorded_frame
from amp.run.run import Run
from amp.settings.prune import OF_RECOVERY, OF_SEQUENTIAL, PruneConfig, SearchSettings

REFIT = (
    *("compensation", "compensate_in_search", "damping", "num_calibration_samples"),
    *OF_SEQUENTIAL,
    *OF_RECOVERY,
)
JOURNAL = "prune_journal.jsonl"


def journal_header(run: Run[PruneConfig], scores: Path) -> dict[str, object]:
    """What decides a measurement: the run, and the scores."""
    own = {"scores_sha256": file_sha256(str(scores))}
    return {**run.header, "settings": {**run.header["settings"], **own}}


def place_of(run: Run[PruneConfig], thresholds: Sequence[float] = ()) -> Path:
    """Where a pruning goes: `output.dir`, or where another pruning of the same scores is there, a folder in it that is
    named by what is asked for, as `params-0.6`.

    A pruning of another model or of other images leaves no place for this one; that is for the run to say.

    Args:
        thresholds: of a sweep, in nats.
    """
    own = own_place(run, thresholds)
    if not thresholds and (own / PRUNE_RECORD).exists():
        return own
    if _is_free(run, run.folder, thresholds):
        return run.folder
    say(f"{run.folder} already holds another pruning with these scores; this one is written to {own}")
    _take_journal_along(run, own, thresholds)
    return own


def own_place(run: Run[PruneConfig], thresholds: Sequence[float] = ()) -> Path:
    """The folder in `output.dir` that is named by what is asked for; with a digest where one of that name holds others.

    Args:
        thresholds: of a sweep, in nats.
    """
    name = f"sweep-{min(thresholds):g}-{max(thresholds):g}" if thresholds else size_name(run.config.prune)
    digest = json_sha256([run.config.prune.decisive(), thresholds])
    places = [run.folder / name, run.folder / f"{name}-{digest[:8]}"]
    return next((place for place in places if _is_free(run, place, thresholds)), places[-1])


def place_to_refit(run: Run[PruneConfig]) -> Path:
    """The folder of the pruning that these settings made, whatever its compensation: `output.dir`, or one in it.

    Settings that ask for no size are of the only pruning that is there.

    Raises:
        UserError: there is none.
    """
    places = [path.parent for path in (run.folder / "pruned", *sorted(run.folder.glob("*/pruned"))) if path.is_dir()]
    own = run.config.prune
    if len(places) == 1 and own.widths is None and not own.target.asked:
        return places[0]
    prune = called("prune")
    said = f"{run.folder}: has no folder pruned/; run {prune} with the same settings first"
    for place in places:
        header = read_header(place / model_files("pruned")[0])
        wanted = run.with_frame(recorded_frame(header)).identity
        difference = first_difference(_uncompensated(header), _uncompensated(wanted))
        if difference is None:
            return place
        said = f"{place / 'pruned'} was made {in_words(*difference)}"
    raise UserError("--compensate_only", said)


def _uncompensated(header: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings of a refit; digests of images stay."""
    settings = dict(header.get("settings", {}))
    own = {key: value for key, value in dict(settings.get("prune", {})).items() if key not in REFIT}
    return {**header, "settings": {**settings, "prune": own}}


def size_name(settings: SearchSettings) -> str:
    """A folder's name for what is asked for: the target, the widths, or the threshold."""
    if settings.widths is not None:
        return f"widths-{json_sha256(settings.widths)[:8]}"
    kind, value = settings.target.asked or ("increase", settings.entropy_increase)
    return f"{kind}-{value:g}"


def _is_free(run: Run[PruneConfig], folder: Path, thresholds: Sequence[float]) -> bool:
    """Whether the folder holds no pruning, or this one's; or one that differs in more than what it asks for."""
    record = folder / PRUNE_RECORD
    if record.exists() and not thresholds:
        header = read_header(record, f"delete {record} to prune again")
        difference = first_difference(header, run.with_frame(recorded_frame(header)).identity)
    else:
        difference = _other_search(run, folder, thresholds)
    return difference is None or not difference[0].startswith(("prune.", "thresholds"))


def _other_search(run: Run[PruneConfig], folder: Path, thresholds: Sequence[float]) -> tuple[str, Any, Any] | None:
    if not (folder / JOURNAL).exists():
        return None
    scores = run.folder / SCORES
    framed = run.with_frame(recorded_frame(read_header(scores))) if scores.exists() else run
    wanted = thresholds or [run.config.prune.entropy_increase]
    return other_search(folder / JOURNAL, journal_header(framed, scores), wanted)


def _take_journal_along(run: Run[PruneConfig], place: Path, thresholds: Sequence[float]) -> None:
    """What an earlier search measured of the same networks need not be measured again."""
    source, own = run.folder / JOURNAL, place / JOURNAL
    if source.exists() and not own.exists() and _other_search(run, run.folder, thresholds) is None:
        with room_for(own), atomic(own) as partial:
            shutil.copyfile(source, partial)

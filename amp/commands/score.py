"""Scores the hidden neurons of every MLP with one criterion; writes scores.safetensors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amp.data.listing import Listing
from amp.run.console import called, say
from amp.run.files import HEAD_SCORES, SCORES, begin_sha256
from amp.run.options import check_run_folder
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import parse_score

if TYPE_CHECKING:
    from torch import Tensor

    from amp.data.batches import Batches
    from amp.run.run import Run
    from amp.towers import Tower


def main() -> None:
    config, options = parse_score(__doc__)
    with options.as_typed():
        check_run_folder(config)
        if not options.dry_run:
            begin_sha256(config.dense.weights)
        if options.named:
            from amp.commands._without_file import score_named

            score_named(options.named, options)
            return
    if options.dry_run:
        from amp.scoring import describe_plan

        print(describe_plan(config, options.gpu_memory))
        return
    listing = Listing(config.data)
    if not Path(config.output.dir, SCORES).exists():
        listing.check(config.data.batch_size, ["val"], ["train"])
    score_model(config, listing)
    say(f"next: {called('prune')} with the same settings")


def score_model(
    config: PruneConfig,
    listing: Listing,
    plan: str | None = None,
    check: "Callable[[Tower], None] | None" = None,
    look: "Callable[[Tower, Batches], None] | None" = None,
) -> bool:
    """One scoring, unless its file is there; whether it was not.

    Args:
        listing: of the images of these settings.
        plan: what is said once the model is open; None: what the scoring will do.
        check: is shown the dense tower on the meta device, before its weights are read.
        look: is shown the dense tower and the images before they are scored.
    """
    from amp.commands._plan import describe_scoring
    from amp.data.batches import Batches
    from amp.run.run import open_run
    from amp.run.world import world
    from amp.scoring import reads_images
    from amp.towers import build_tower, default_frame, library, tell_preprocess, with_attention

    frame = config.model.frame or default_frame(config.model.name)
    config = config.with_frame(frame)
    outputs = (SCORES,) if config.attention == "none" else (SCORES, HEAD_SCORES)

    def inputs() -> dict[str, str]:
        library(frame).check(config.model)
        # What the search needs is better missed now than after the scoring.
        listing.check_fills_batch("val", config.data.batch_size)
        if reads_images(config.score):
            listing.check_fills_batch("train", config.data.batch_size)
        return listing.digests("train")

    with open_run(config, inputs, outputs, leave_out=("prune",)) as run:
        if _is_done(run, outputs):
            return False
        shapes = with_attention(build_tower(config.model, "meta"), config.attention)
        names = outputs if shapes.heads else (SCORES,)
        if names != outputs and run.done(*names):
            return False
        if check:
            check(shapes)
        tower = build_tower(config.model, str(world().device), shapes=shapes)
        say(plan or describe_scoring(config))
        widths = " or ".join(map(str, sorted(set(tower.widths))))
        say(f"{config.model.name}: {len(tower.slots)} blocks, each with {widths} hidden neurons in its MLP")
        tell_preprocess(tower)
        images: Batches | list[Tensor] = []
        if reads_images(config.score):
            images = Batches(listing.images("train"), tower.transform, config.data, config.data.num_samples)
            if look:
                look(tower, images)
        for name in names:
            if len(outputs) == 1 or not run.done(name):
                _write_scores(run, tower, images, name)
        if isinstance(images, Batches):
            images.say_broken()
    return True


def _is_done(run: "Run[PruneConfig]", outputs: tuple[str, ...]) -> bool:
    """Whether all scores are there; of such a run nothing unfinished stays, and lost moments are told."""
    from amp.run.world import world
    from amp.statistics.kept_moments import MOMENTS
    from amp.statistics.saved_sums import forget_sums

    if not run.done(*outputs):
        return False
    for name in outputs:
        world().from_main(partial(forget_sums, _unfinished(run, name)))
    if run.config.score.keep_moments and not world().from_main(partial(_has_moments, run.folder, len(outputs) > 1)):
        say(f"note: {run.path(MOMENTS)} is incomplete or from another scoring; to redo both, delete {SCORES}")
    return True


def _unfinished(run: "Run[PruneConfig]", name: str) -> Path:
    """Where the sums of a file of scores are kept meanwhile."""
    return run.path(name.replace("scores", "scores_unfinished"))


def _write_scores(run: "Run[PruneConfig]", tower: "Tower", images: "Batches | list[Tensor]", name: str) -> None:
    """One file of scores."""
    from amp.run.world import world
    from amp.scoring import save_scores, score, score_heads
    from amp.statistics.kept_moments import MOMENTS, KeptMoments
    from amp.statistics.saved_sums import SavedSums, forget_sums

    own, rank = run.config.score, {SCORES: score, HEAD_SCORES: score_heads}[name]
    kept = KeptMoments(len(images), run.path(MOMENTS), run.header) if own.keep_moments else None
    unfinished = _unfinished(run, name)
    saved = SavedSums(unfinished, run.header, own.save_every) if images else None
    scores = rank(tower, images, own, saved, kept)
    world().from_main(partial(save_scores, scores, run.header, run.path(name)))
    world().from_main(partial(forget_sums, unfinished))
    say(f"wrote {run.path(name)}")


def _has_moments(folder: Path, of_heads: bool) -> bool:
    from amp.scoring.scores_file import load_scores
    from amp.statistics.kept_moments import find_moments, unit_names

    scores, header = load_scores(folder / SCORES)
    return find_moments(folder, unit_names(len(scores), of_heads), header) is not None

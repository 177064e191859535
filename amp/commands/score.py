"""Scores the hidden neurons of every MLP by one criterion; writes scores.safetensors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from amp.run.console import called, say
from amp.run.files import begin_sha256
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import parse_score

if TYPE_CHECKING:
    from amp.data.batches import Batches
    from amp.towers import Tower


def main() -> None:
    config, options = parse_score(__doc__)
    if options.named:
        from amp.commands._without_file import score_named

        score_named(options.named, options)
        return
    if options.dry_run:
        from amp.scoring import describe_plan

        print(describe_plan(config, options.gpu_memory))
        return
    begin_sha256(config.dense.weights)
    score_model(config)
    say(f"next: {called('main_prune.py', 'amp prune')} with the same settings")


def score_model(config: PruneConfig, look: "Callable[[Tower, Batches], None] | None" = None) -> None:
    """One scoring, unless its file is there.

    Args:
        look: is shown the dense tower and the images before they are scored.
    """
    from amp.data.batches import Batches
    from amp.data.identity import digests_of
    from amp.data.listing import check_fills_batch, list_images
    from amp.run.run import SCORES, open_run
    from amp.run.world import world
    from amp.scoring import reads_images, save_scores, score
    from amp.statistics.kept_moments import MOMENTS, KeptMoments
    from amp.statistics.saved_sums import SavedSums, forget_sums
    from amp.towers import build_tower, default_frame, describe_preprocess

    config = config.with_frame(config.model.frame or default_frame(config.model.name))

    def inputs() -> dict[str, str]:
        check_fills_batch(config.data, "val")  # What the search needs is better missed now than after the scoring.
        return digests_of(config.data, "train")

    with open_run(config, inputs, (SCORES,), leave_out=("prune",)) as run:
        path, unfinished = run.path(SCORES), run.path("scores_unfinished.safetensors")
        if run.done(SCORES):
            world().from_main(lambda: forget_sums(unfinished))
            if config.score.keep_moments and not run.path(MOMENTS).exists():
                say(f"note: {path} was made without score.keep_moments; delete it to keep them")
            return
        paths = list_images(config.data, "train")
        tower = build_tower(config.model, str(world().device))
        widths = " or ".join(map(str, sorted(set(tower.widths))))
        say(f"{config.model.name}: {len(tower.slots)} blocks, each with {widths} hidden neurons in its MLP")
        say(describe_preprocess(tower))
        if reads_images(config.score):
            batches = Batches(paths, tower.transform, config.data, config.data.num_samples)
            if look:
                look(tower, batches)
            saved = SavedSums(unfinished, run.header, config.score.save_every)
            kept = KeptMoments(len(batches), run.path(MOMENTS), run.header) if config.score.keep_moments else None
            scores = score(tower, batches, config.score, saved, kept)
            batches.say_broken()
        else:
            scores = score(tower, [], config.score)
        world().from_main(lambda: save_scores(scores, run.header, path))
        world().from_main(lambda: forget_sums(unfinished))
        say(f"wrote {path}")

"""`amp score` and `amp prune` of a model and images, without a YAML: what the two call for.

B images of a batch, C channels, S side in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from amp.commands.prune import each_of, prune_models
from amp.commands.score import score_model
from amp.data.layouts import SPLITS
from amp.data.listing import HELD_OUT, SCORED, Listing, too_few
from amp.errors import UserError
from amp.run.console import say
from amp.settings.model import RANDOM, Frame, ModelSettings
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import Named, PruneOptions, ScoreOptions

if TYPE_CHECKING:
    from amp.data.batches import Batches
    from amp.towers import Tower

FEWEST = 8  # images, of which a fourth is held out: a batch of two


def score_named(named: Named, options: ScoreOptions) -> None:
    """Scores."""
    listing = Listing(named.config().data)
    config = fitted(named, listing)
    if options.dry_run:
        from amp.scoring import describe_plan

        print(describe_plan(config, options.gpu_memory))
        return

    from amp.commands._plan import describe_pruning, named_model
    from amp.run.world import start

    with start():
        if not _score([config], listing, describe_pruning(config)):
            say(named_model(config.model))
        say("next: run `amp prune` with the same options and a size, such as --params 0.6 for 60 % of the parameters")


def prune_named(named: Named, options: PruneOptions) -> None:
    """Scores where that is not done, and prunes."""
    listing = Listing(named.config().data)
    config = fitted(named, listing)
    if options.dry_run:
        from amp.pruning.memory import describe_plan

        print(describe_plan(config, options.gpu_memory))
        return

    from amp.commands._plan import after_pruning, describe_pruning, describe_slicing
    from amp.run.world import start

    with start():
        targets = options.sweep.targets
        if not _score(each_of(config, options), listing, describe_pruning(config, targets)):
            say(describe_slicing(config, targets))
        say(after_pruning(prune_models(config, options, listing), config.data))


def _score(each: Sequence[PruneConfig], listing: Listing, plan: str) -> bool:
    """What all of the prunings to come share; whether it was not done."""
    from amp.commands._plan import describe_time, estimate_seconds
    from amp.pruning import check_possible

    def check(shapes: "Tower") -> None:
        check_possible(shapes, [own.prune for own in each])

    def look(tower: "Tower", images: "Batches") -> None:
        say(describe_time(estimate_seconds(each[0], tower, images)))

    return score_model(each[0], listing, plan, check, look)


def fitted(named: Named, listing: Listing) -> PruneConfig:
    """The settings, with the library and the weights that the name says, and batches that the images fill.

    Raises:
        UserError: no library knows the name, or it does not say which weights; there are too few images.
    """
    config = named.config()
    counts: dict[str, int] = {split: len(listing.images(split)) for split in SPLITS}
    data = _batches(config, counts, named.says("data.batch_size"))

    from amp.towers import find_frame

    frame = config.model.frame or find_frame(config.model.name)
    return named.config(model={"frame": frame, "pretrained": find_weights(config.model, frame)}, data=data)


def _batches(config: PruneConfig, counts: Mapping[str, int], asked: bool) -> dict[str, int]:
    """The settings of the batches.

    Args:
        counts: the images of each split.
        asked: whether the user has given the batch size, which is then not lowered.
    """
    own, total = config.data, sum(counts.values())
    if total < FEWEST:
        raise UserError(
            "data.root", f"{own.root}: {total} images; at least {FEWEST} are needed, and thousands for good results"
        )
    for split, what in (("train", SCORED), ("val", HELD_OUT)):
        if asked and counts[split] < own.batch_size:
            raise too_few(own.batch_size, counts[split], f"of {own.root} {what}")
    fits = [size for size in (2**power for power in range(1, 20)) if size <= min(counts.values())]
    batch_size = own.batch_size if own.batch_size <= fits[-1] else fits[-1]
    wanted = {"num_samples": (own.num_samples, "train"), "num_val_samples": (own.num_val_samples, "val")}
    return {"batch_size": batch_size} | {
        key: min(value or counts[split], counts[split]) for key, (value, split) in wanted.items()
    }


def find_weights(model: ModelSettings, frame: Frame) -> str | None:
    """The weights that were named, else those that the model's name says; None where it holds them, and for random.

    Raises:
        UserError: there is nothing to say which.
    """
    from amp.towers import known_weights, library

    own, weights = library(frame), known_weights(model.pretrained, frame)
    own.check(model.model_copy(update={"pretrained": weights}))
    if model.pretrained or own.folders:
        return weights
    tag, tags = model.name.partition(".")[2], own.tags(model.name)
    if tag in tags:
        return tag
    known = f"a tag of {model.name} ({', '.join(tags)}), a file" if tags else "a file"
    raise UserError("model.pretrained", f"missing; give {known}, or {RANDOM} to try the command without weights")

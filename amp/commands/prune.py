"""Prunes a model: finds each block's width, slices the network; writes prune.json, prune.png and pruned/."""

import time
from pathlib import Path

from amp.data.layouts import SPLITS, Split
from amp.data.listing import Listing
from amp.run.console import say
from amp.run.files import PRUNE_RECORD, SCORES, begin_sha256, model_files
from amp.run.options import check_run_folder, check_scored
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import PruneOptions, parse_prune


def main() -> None:
    config, options = parse_prune(__doc__)
    with options.as_typed():
        check_run_folder(config)
        if not options.dry_run:
            begin_sha256(config.dense.weights)
        if options.named:
            from amp.commands._without_file import prune_named

            prune_named(options.named, options)
            return
    if options.dry_run:
        from amp.pruning.memory import describe_plan

        print(describe_plan(config, options.gpu_memory))
        return

    listing = Listing(config.data)
    _check_inputs(config, options, listing)

    from amp.commands._plan import after_pruning
    from amp.run.world import start

    with start():
        folder = prune_models(config, options, listing)
        if not options.sweep.thresholds and not options.compensate_only:
            say(after_pruning(folder, config.data))


def _check_inputs(config: PruneConfig, options: PruneOptions, listing: Listing) -> None:
    """What is missing is told at once, unless the folder holds a pruning, which may be the one that is asked for."""
    folder = Path(config.output.dir)
    if any(record for pattern in (PRUNE_RECORD, f"*/{PRUNE_RECORD}") for record in folder.glob(pattern)):
        return
    if not options.compensate_only:
        check_scored(folder / SCORES)
    listing.check(config.data.batch_size, _filled(config, options), SPLITS)


def _filled(config: PruneConfig, options: PruneOptions) -> list[Split]:
    """The splits that must hold a batch."""
    refits = config.prune.compensation != "none" or config.prune.recover_steps
    return [*(() if options.compensate_only else ("val",)), *(("train",) if refits else ())]


def _digests(config: PruneConfig, options: PruneOptions, listing: Listing) -> dict[str, str]:
    for split in _filled(config, options):
        listing.check_fills_batch(split, config.data.batch_size)
    return listing.digests(*SPLITS)


def prune_models(config: PruneConfig, options: PruneOptions, listing: Listing) -> Path:
    """One pruning, or one for each size of `--sweep`; gives the folder of the last one."""
    from amp.pruning import write_sizes

    folders = [prune_model(own, options, listing) for own in each_of(config, options)]
    if options.sweep.targets:
        write_sizes(Path(config.output.dir), folders)
    return folders[-1]


def each_of(config: PruneConfig, options: PruneOptions) -> list[PruneConfig]:
    """The settings of each pruning that is asked for."""
    return [config.of_target(key, value) for key, value in options.sweep.targets] or [config]


def prune_model(config: PruneConfig, options: PruneOptions, listing: Listing) -> Path:
    """One pruning, or one sweep of thresholds, unless its files are there; gives its folder."""
    from amp.commands._plan import describe_slicing
    from amp.pruning import (
        check_possible,
        open_networks,
        prune,
        refit_pruned,
        relative_size,
        write_pruning,
        write_sweep,
    )
    from amp.pruning.places import own_place, place_of, place_to_refit
    from amp.run.identity import recorded_frame
    from amp.run.run import Run, open_run
    from amp.run.world import world
    from amp.scoring.scores_file import check_fit, check_scores, load_scores, with_scored_heads
    from amp.towers import build_tower, tell_preprocess

    thresholds = options.sweep.thresholds
    outputs = (PRUNE_RECORD, *model_files("pruned"))

    def place(run: Run[PruneConfig]) -> Path:
        if options.compensate_only:
            return place_to_refit(run)
        return own_place(run) if options.sweep.targets else place_of(run, thresholds)

    with open_run(config, lambda: _digests(config, options, listing), outputs, place=place) as run:
        if options.compensate_only:
            refit_pruned(run, listing)
            return run.folder
        if not thresholds and run.with_frame_of(*outputs).done(*outputs):
            return run.folder
        scores_file = Path(config.output.dir, SCORES)
        scores, scored = load_scores(scores_file)
        run = run.with_frame(recorded_frame(scored))
        check_scores(scored, run.header, scores_file)
        started, own = time.monotonic(), run.config.prune
        shapes = build_tower(run.config.model, "meta")  # What does not fit it is told before its weights are read.
        check_fit(scores, shapes, scores_file)
        shapes, scores = with_scored_heads(run, shapes, scores, told=bool(options.named))
        # A size that cannot be had ends a sweep before its first.
        check_possible(shapes, [each.prune for each in each_of(config, options)])
        tower = build_tower(run.config.model, str(world().device), shapes=shapes)
        if not options.named:  # whose scoring has told it
            say(describe_slicing(run.config))
            tell_preprocess(tower)
        with open_networks(run, tower, scores, listing, thresholds) as networks:
            if thresholds:
                write_sweep(run, networks, thresholds)
                return run.folder
            pruned = prune(networks, own, relative_size(own, tower, networks.journal))
        cost = {**networks.held_out.cost, "seconds": round(time.monotonic() - started, 2)}
        write_pruning(run, pruned.without_whole_heads(tower), pruned, cost)
        return run.folder

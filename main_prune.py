"""Finds each block's width by binary search, slices the network; writes prune.json, prune.png and pruned/."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amp.errors import UserError
from amp.run.console import reproduce, run_script, say
from amp.run.files import atomic, file_sha256, prepare_output, read_json, write_json
from amp.run.identity import check_same, identity, recorded_frame, versions
from amp.settings.command_line import parse_args, plan_options
from amp.settings.prune import PruneConfig

THROUGHPUT = {"batch_size": 64, "num_rounds": 20}


def read_options() -> tuple[PruneConfig, argparse.Namespace]:
    """Settings, and the script's own options. Raises UserError."""
    options = plan_options()
    options.add_argument(
        "--sweep",
        nargs="+",
        type=float,
        default=[],
        metavar="NATS",
        help="size and entropy at several entropy_increases",
    )
    options.add_argument(
        "--compensate_only",
        action="store_true",
        help="refit the out-projections of output.dir/pruned as prune.compensation says; writes output.dir/compensated",
    )
    config = parse_args(PruneConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()
    if args.compensate_only and config.prune.compensation == "none":
        raise UserError("--compensate_only", "prune.compensation is none; say --set prune.compensation=ridge, or mean")
    args.sweep = sorted(set(args.sweep))
    if args.sweep and args.sweep[0] < 0:
        raise UserError("--sweep", f"{args.sweep[0]}: thresholds are at least 0")
    for key, given in (("widths", config.prune.widths), ("target", config.prune.target.asked)):
        if args.sweep and given:
            raise UserError("--sweep", f"prune.{key} must be null; the thresholds alone decide")
    return config, args


def open_candidates(
    config: PruneConfig, tower: Any, scores: Any, header: Any, thresholds: list[float]
) -> tuple[Any, Any]:
    """The networks that a search looks at, with what an interrupted one has measured; and the batches they see."""
    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.prune.measure.held_out import EntropyMeter
    from amp.prune.measure.journal import Journal
    from amp.prune.measure.networks import Candidates, open_compensation
    from amp.prune.measure.store import Shelf
    from amp.run.world import world

    folder, own = Path(config.output.dir), config.prune
    digest = world().from_main(lambda: file_sha256(str(folder / "scores.safetensors")))
    about = {**header, "settings": {**header["settings"], "scores_sha256": digest}}
    journal = Journal(folder / "prune_journal.jsonl", about, thresholds)
    batches = Batches(list_images(config.data, "val"), tower.transform, config.data, config.data.num_val_samples)
    shelf = Shelf(own.store, world().device, folder / f".inputs.{world().rank}")
    meter = EntropyMeter(tower, batches, config.score.inverse_temperature, shelf, own.inputs_every)
    say(f"{meter.num_batches} held-out batches; up to {meter.stored_bytes / 1e9:.3g} GB of inputs kept: {own.store}")
    compensation = open_compensation(tower, scores, own, calibration(config, tower))
    return Candidates(tower, scores, meter, journal, compensation, own.compensate_in_search), batches


def calibration(config: PruneConfig, tower: Any) -> Callable[[], Any]:
    """-> the images that compensation sees."""
    from amp.data.batches import Batches
    from amp.data.listing import list_images

    num_samples = config.prune.num_calibration_samples
    return lambda: Batches(list_images(config.data, "train"), tower.transform, config.data, num_samples)


def sizes_of(tower: Any) -> Callable[[Sequence[int]], dict[str, int]]:
    """Widths -> `{params, flops}` of the tower."""
    from amp.models.sizes import measure_widths
    from amp.towers import rebuild_dense

    twin = rebuild_dense(tower.base, "meta")
    return lambda widths: measure_widths(twin, widths)


def share_of(key: str, tower: Any, journal: Any) -> Callable[[Sequence[int]], float]:
    """Widths -> what the tower has of the dense one's parameters, FLOPs or, for throughput, seconds an image.

    Seconds stand in the journal: a search that goes on decides by those that it has measured before.
    """
    from amp.run.world import world

    if key != "throughput":
        sizes = sizes_of(tower)
        dense = sizes(tower.widths)[key]
        return lambda widths: sizes(widths)[key] / dense

    from amp.models.throughput import measure_throughput, rebuild

    whole = rebuild(tower.base, str(world().device))

    def seconds(widths: Sequence[int]) -> float:
        towers = {"dense": whole, "pruned": rebuild(tower.base, str(world().device), widths)}
        rates = measure_throughput(towers, **THROUGHPUT)
        return float(world().broadcast(rates["dense"]["median"] / rates["pruned"]["median"]))

    return lambda widths: journal.share(tuple(widths), lambda: seconds(widths))


def sweep_thresholds(candidates: Any, config: PruneConfig, header: Any, thresholds: list[float]) -> None:
    """Writes prune_sweep.json, .md and .png: size and entropy at every threshold. The tower stays dense."""
    from amp.prune.blocks import find_widths
    from amp.prune.report import plot_sweep, sweep_table
    from amp.run.world import world

    folder, tower = Path(config.output.dir), candidates.tower
    sizes = sizes_of(tower)
    started = time.monotonic()
    points = []
    for threshold in thresholds:
        found = find_widths(candidates, config.prune, threshold)
        ends = {"dense_entropy": found.dense_entropy, "final_entropy": found.final_entropy}
        points.append({"entropy_increase": threshold, "widths": found.widths, **sizes(found.widths), **ends})
    cost = {**candidates.meter.cost, "seconds": round(time.monotonic() - started, 2)}
    record = {"dense": sizes(tower.widths), "points": points, "cost": cost, **header}
    if world().is_main:
        plot_sweep(record, folder / "prune_sweep.png")
        with atomic(folder / "prune_sweep.md") as partial:
            partial.write_text(sweep_table(record) + "\n", encoding="utf-8")
        write_json(folder / "prune_sweep.json", {**record, "reproduce": reproduce("main_prune.py")})
    world().barrier()
    say(sweep_table(record))
    say(f"wrote {folder}/prune_sweep.json, .md and .png in {cost['seconds']:.0f} s")
    say("to write one of them out: the same command with --set prune.entropy_increase=NATS, without --sweep")


def compensate_only(config: PruneConfig) -> None:
    """Writes compensated/: the neurons of pruned/, with out-projections refitted to the dense model's."""
    import torch

    from amp.models.folder import read_folder_config, save_tower
    from amp.prune.measure.networks import Candidates, open_compensation
    from amp.run.world import world
    from amp.towers import build_tower

    folder = Path(config.output.dir)
    pruned = read_folder_config(folder / "pruned")
    config = config.with_frame(pruned.base["frame"])
    tower = build_tower(config.model, str(world().device))
    if pruned.kept is None or not tower.same_base(pruned.base):
        raise UserError(
            "--compensate_only", f"{folder / 'pruned'}: its kept neurons are not those of {config.model.name}"
        )
    chosen = [
        torch.zeros(width).index_fill(0, torch.tensor(kept), 1.0)
        for width, kept in zip(tower.widths, pruned.kept, strict=True)
    ]
    compensation = open_compensation(tower, chosen, config.prune, calibration(config, tower))
    candidates = Candidates(tower, chosen, None, None, compensation)
    say_errors(candidates.keep(pruned.widths)[1])
    if world().is_main:
        header = {**identity(config), "versions": versions()}
        save_tower(tower, pruned.kept, {**header, "pruned": pruned.provenance}, folder / "compensated")
    world().barrier()
    say(f"wrote {folder / 'compensated'}")


def say_errors(errors: Sequence[dict[str, float]]) -> None:
    """What compensation did, on the console."""
    means = [sum(error[key] for error in errors) / len(errors) for key in ("without", "with")]
    say(f"compensation: error of the MLPs' outputs {means[0]:.1%} -> {means[1]:.1%} of their variance")


def write_pruned(result: Any, tower: Any, config: PruneConfig, record: dict[str, Any], header: Any) -> None:
    """Writes prune.png, pruned/ and, as the sign that all is there, prune.json."""
    from amp.models.folder import save_tower
    from amp.prune.report import describe_sizes, plot_pruning
    from amp.run.world import world

    folder = Path(config.output.dir)
    if world().is_main:
        plot_pruning(record, folder / "prune.png")
        save_tower(tower, result.kept, header, folder / "pruned")
        write_json(folder / "prune.json", {**record, "reproduce": reproduce("main_prune.py")})
    world().barrier()
    say(describe_sizes(record["params"], record["flops"]))
    if result.found and result.final_entropy < result.dense_entropy:
        say("note: the entropy fell, which the signed criterion allows; compare the features before you trust it")
    say(f"widths {tower.widths}; entropy {result.dense_entropy:.4f} -> {result.final_entropy:.4f} nats")
    say(f"wrote {folder}/prune.json, prune.png and pruned/ in {record['cost']['seconds']:.0f} s")


def main() -> None:
    config, args = read_options()
    sweep = args.sweep
    if args.dry_run:
        from amp.prune.memory import describe_plan

        print(describe_plan(config, "search", args.gpu_memory))
        return

    from amp.models.sizes import measure_sizes
    from amp.prune.pruning import check_widths, prune
    from amp.run.world import start, world
    from amp.score.scores_file import check_scores, load_scores
    from amp.towers import build_tower

    with start():
        folder = world().from_main(lambda: prepare_output(config.output.dir))
        if args.compensate_only:
            compensate_only(config)
            return
        if not sweep and world().broadcast((folder / "prune.json").exists() and (folder / "pruned").is_dir()):
            record = read_json(folder / "prune.json")
            config = config.with_frame(recorded_frame(record))
            check_same(folder / "prune.json", record, {**identity(config), "versions": versions()})
            say(f"already done: {folder / 'prune.json'} and {folder / 'pruned'}")
            return
        scores, scored = load_scores(folder / "scores.safetensors")
        config = config.with_frame(recorded_frame(scored))
        header = {**identity(config), "versions": versions()}
        check_scores(scored, header)
        started = time.monotonic()
        tower = build_tower(config.model, str(world().device))
        dense_widths = tower.widths
        check_widths(tower, config.prune)
        thresholds = sweep or [config.prune.entropy_increase]
        candidates, batches = open_candidates(config, tower, scores, header, thresholds)
        try:
            if sweep:
                sweep_thresholds(candidates, config, header, sweep)
                return
            asked = config.prune.target.asked
            result = prune(candidates, config.prune, share_of(asked[0], tower, candidates.journal) if asked else None)
        finally:
            candidates.meter.close()
        batches.say_broken()
        sizes = measure_sizes(config.model, result.kept)
        cost = {**candidates.meter.cost, "seconds": round(time.monotonic() - started, 2)}
        record = {"widths": tower.widths, "dense_widths": dense_widths, **result.entropies, **sizes, "cost": cost}
        if result.errors:
            record["compensation"] = result.errors
            say_errors(result.errors)
        write_pruned(result, tower, config, {**record, **header}, header)


if __name__ == "__main__":
    run_script(main)

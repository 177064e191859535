"""What a search costs: plain, exact and racing side by side on the same model and images; and a scoring pass."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amp.cli import load_config
from amp.config import PruneConfig
from amp.runs import reproduce, run_script, say, write_json
from eval.results import check_writable

CONFIG = "configs/prune_entropy/search_cost.yaml"
SEARCHES: dict[str, dict[str, str]] = {
    "plain": {"search": "plain"},
    "exact": {"search": "exact"},
    "racing strict": {"search": "racing", "preset": "strict"},
    "racing fast": {"search": "racing", "preset": "fast"},
}
SCENES = 12_800  # held-out scenes that are painted where there are none
ROUNDS = 20


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config_file", default=CONFIG, metavar="YAML", help="settings of main_prune.py (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, repeatable")
    add("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="which ones (default: all)")
    add("--thresholds", nargs="+", type=float, metavar="NATS", help="entropy increases (default: the config's)")
    add("--num_seeds", type=int, default=1, help="orders of the images, from the config's seed on (default: 1)")
    add("--json", metavar="FILE", help="write the numbers here (default: nowhere)")
    args = parser.parse_args()
    if args.num_seeds < 1:
        parser.error(f"argument --num_seeds: {args.num_seeds} is less than 1")
    if args.json:
        check_writable("--json", args.json)
    return args


def time_search(tower: Any, scores: Any, batches: Any, config: PruneConfig, world: Any) -> dict[str, Any]:
    """One search, from images in memory to widths: `{widths, entropies, block_forwards, seconds, ...}`."""
    from amp.candidates import Candidates
    from amp.journal import Journal
    from amp.meter import EntropyMeter
    from amp.pruning import find_widths
    from amp.replay import Shelf

    own = config.prune
    shelf = Shelf(own.store, world.device, Path(config.output.dir) / ".inputs")
    every = None if own.search == "plain" else own.store_every
    started = time.perf_counter()
    meter = EntropyMeter(tower, batches, config.score.inverse_temperature, world, shelf, every)
    journal = Journal(None, {"settings": {"prune": {}}}, [], world)
    found = find_widths(Candidates(tower, scores, meter, journal), own, own.entropy_increase)
    seconds = time.perf_counter() - started
    meter.close()
    ends = {"dense_entropy": found.dense_entropy, "final_entropy": found.final_entropy}
    return {"widths": found.widths, **ends, "probe_batches": found.probe_batches, **meter.cost, "seconds": seconds}


def compare(record: dict[str, Any], plain: dict[str, Any], exact: dict[str, Any], grid: list[int]) -> dict[str, Any]:
    """How a search stands to the plain one in cost, and to the exact one in widths, in steps of its grid."""
    steps = [abs(a - b) / step for a, b, step in zip(record["widths"], exact["widths"], grid, strict=True)]
    return {
        "forwards_share": record["block_forwards"] / plain["block_forwards"],
        "seconds_share": record["seconds"] / plain["seconds"],
        "blocks_equal": sum(step == 0 for step in steps) / len(steps),
        "largest_step": max(steps),
        "neurons_more": sum(record["widths"]) / sum(exact["widths"]) - 1,
    }


def measure_searches(args: argparse.Namespace, config: PruneConfig, tower: Any, scores: Any, world: Any) -> list[Any]:
    """The searches at every threshold and seed; where the plain one is left out, its forwards are reckoned."""
    from amp.data import Batches, list_images

    paths = list_images(config.data, "val")
    num_blocks, grid = len(tower.slots), [max(1, width // 2**config.prune.search_steps) for width in tower.widths]
    runs = []
    for seed in range(config.data.seed, config.data.seed + args.num_seeds):
        data = config.data.model_copy(update={"seed": seed})
        batches = list(Batches(paths, tower.transform, data, world, data.num_val_samples))
        for threshold in args.thresholds or [config.prune.entropy_increase]:
            found: dict[str, Any] = {}
            for name in args.searches:
                prune = config.prune.model_copy(update={**SEARCHES[name], "entropy_increase": threshold})
                one = config.model_copy(update={"prune": prune})
                found[name] = time_search(tower, scores, batches, one, world)
            exact = found.get("exact", found[args.searches[0]])
            passes = 1 + num_blocks * config.prune.search_steps
            reckoned = {"block_forwards": num_blocks * passes * len(batches), "seconds": float("nan")}
            for record in found.values():
                record |= compare(record, found.get("plain", reckoned), exact, grid)
            runs.append({"seed": seed, "threshold": threshold, "batches": len(batches), "searches": found})
            show_run(runs[-1])
    return runs


def show_run(run: dict[str, Any]) -> None:
    """The table of one threshold and seed, and the widths."""
    from amp.report import table

    rows = []
    for name, found in run["searches"].items():
        shares = [f"{found['forwards_share']:.3f}", f"{found['seconds']:.1f}", f"{found['seconds_share']:.3f}"]
        likeness = [f"{found['blocks_equal']:.0%}", f"{found['largest_step']:g}", f"{found['neurons_more']:+.1%}"]
        rows.append([name, str(found["block_forwards"]), *shares, *likeness])
    say(f"\nseed {run['seed']}, {run['batches']} batches, entropy_increase {run['threshold']:g}")
    headers = ["search", "block forwards", "share", "seconds", "share", "blocks equal", "largest step", "neurons"]
    say(table(headers, rows))
    for name, found in run["searches"].items():
        say(f"{name}: {found['widths']}, entropy {found['dense_entropy']:.5f} -> {found['final_entropy']:.5f}")


def time_scoring(tower: Any, images_BCSS: Any, inverse_temperature: float, world: Any) -> dict[str, float]:
    """Median seconds of a scoring pass, and of forward and backward to the activations alone, in turns."""
    import torch

    from amp.activations import TaylorScorer
    from amp.criteria import information_entropy

    def backward() -> None:
        information_entropy(tower.feature(images_BCSS), inverse_temperature).backward()

    def bare() -> None:
        first = tower.slots[0].out_projection
        handle = first.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach().requires_grad_(),))
        backward()
        handle.remove()

    with TaylorScorer(tower.slots) as scorer:
        pass

    def scoring() -> None:
        with scorer:
            loss = information_entropy(tower.feature(images_BCSS), inverse_temperature)
            scorer.step(loss, len(images_BCSS))

    seconds: dict[str, list[float]] = {"scoring": [], "backward": []}
    for _ in range(ROUNDS):
        for name, run in (("scoring", scoring), ("backward", bare)):
            seconds[name].append(_time(run, torch.cuda.synchronize if world.device.type == "cuda" else None))
    medians = {name: statistics.median(of_name[2:]) for name, of_name in seconds.items()}
    return {**medians, "ratio": medians["scoring"] / medians["backward"]}


def _time(run: Callable[[], None], wait: Callable[[], None] | None) -> float:
    started = time.perf_counter()
    run()
    if wait:
        wait()
    return time.perf_counter() - started


def main() -> None:
    args = parse_args()
    config = load_config(PruneConfig, args.config_file, args.set).with_frame("open_clip")

    from amp import distributed
    from amp.data import Batches, list_images
    from amp.scenes import build_scenes
    from amp.scoring import score_entropy
    from amp.towers import build_tower

    with distributed.start() as world:
        if config.data.name == "digit_scenes":
            world.from_main(lambda: build_scenes(Path(config.data.root), num_val=SCENES))
        tower = build_tower(config.model, str(world.device))
        train = Batches(list_images(config.data, "train"), tower.transform, config.data, world, config.data.num_samples)
        scores = score_entropy(tower, train, config.score.inverse_temperature, config.score.absolute, world)
        images_BCSS = next(iter(train)).to(world.device, tower.dtype)
        scoring = time_scoring(tower, images_BCSS, config.score.inverse_temperature, world)
        say(f"a scoring pass takes {scoring['ratio']:.3f} of forward and backward to the activations alone")
        runs = measure_searches(args, config, tower, scores, world)
        if args.json and world.is_main:
            record = {"runs": runs, "scoring": scoring, "settings": config.model_dump(mode="json")}
            write_json(Path(args.json), {**record, "reproduce": reproduce("eval/eval_search_cost.py")})
            say(args.json)


if __name__ == "__main__":
    run_script(main)

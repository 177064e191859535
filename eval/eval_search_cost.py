"""What a search costs: plain, exact, racing and compensated side by side on one model; and a scoring pass."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amp.run.console import reproduce, run_script, say
from amp.run.files import check_writable, write_json
from amp.settings.load import load_config
from amp.settings.prune import PruneConfig

CONFIG = "configs/prune_entropy/search_cost.yaml"
SEARCHES: dict[str, dict[str, str]] = {
    "plain": {"search": "plain"},
    "exact": {"search": "exact"},
    "racing strict": {"search": "racing", "preset": "strict"},
    "racing fast": {"search": "racing", "preset": "fast"},
    "exact + ridge": {"search": "exact", "compensation": "ridge"},
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
    add("--fresh", type=int, default=0, metavar="N", help="entropy at equal size on N images more (default: 0)")
    add("--json", metavar="FILE", help="write the numbers here (default: nowhere)")
    args = parser.parse_args()
    if args.num_seeds < 1:
        parser.error(f"argument --num_seeds: {args.num_seeds} is less than 1")
    if args.fresh < 0:
        parser.error(f"argument --fresh: {args.fresh} is less than 0")
    if args.json:
        check_writable("--json", args.json)
    return args


def measure_searches(args: argparse.Namespace, config: PruneConfig, tower: Any, scores: Any, world: Any) -> list[Any]:
    """The searches at every threshold and seed."""
    from studies.search_cost import Bench, run_searches, run_table

    bench = Bench(config, tower, scores)
    runs = []
    for seed in range(config.data.seed, config.data.seed + args.num_seeds):
        chosen = {name: SEARCHES[name] for name in args.searches}
        bench.read(seed, args.fresh, any("compensation" in own for own in chosen.values()))
        for threshold in args.thresholds or [config.prune.entropy_increase]:
            searches = {
                name: config.prune.model_copy(update={**own, "entropy_increase": threshold})
                for name, own in chosen.items()
            }
            found = run_searches(bench, searches)
            runs.append({"seed": seed, "threshold": threshold, "batches": len(bench.held_out), "searches": found})
            say(f"\nseed {seed}, {len(bench.held_out)} batches, entropy_increase {threshold:g}\n{run_table(found)}")
            for name, one in found.items():
                say(f"{name}: {one['widths']}, entropy {one['dense_entropy']:.5f} -> {one['final_entropy']:.5f}")
    return runs


def time_scoring(tower: Any, images_BCSS: Any, inverse_temperature: float, world: Any) -> dict[str, float]:
    """Median seconds of a scoring pass, and of forward and backward to the activations alone, in turns."""
    import torch

    from amp.score.taylor import TaylorScorer
    from amp.statistics.entropy import information_entropy

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

    from studies.search_cost import summarise, summary_table

    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.data.scenes import build_scenes
    from amp.run import world as distributed
    from amp.score.scoring import score_entropy
    from amp.towers import build_tower

    with distributed.start() as world:
        if config.data.name == "digit_scenes":
            world.from_main(lambda: build_scenes(Path(config.data.root), num_val=SCENES))
        tower = build_tower(config.model, str(world.device))
        train = Batches(list_images(config.data, "train"), tower.transform, config.data, config.data.num_samples)
        scores = score_entropy(tower, train, config.score.inverse_temperature, config.score.absolute)
        images_BCSS = next(iter(train)).to(world.device, tower.dtype)
        scoring = time_scoring(tower, images_BCSS, config.score.inverse_temperature)
        say(f"a scoring pass takes {scoring['ratio']:.3f} of forward and backward to the activations alone")
        runs = measure_searches(args, config, tower, scores)
        summary = summarise(runs)
        say(f"\nover {len(runs)} runs, mean (worst):\n{summary_table(summary)}")
        if args.json and world.is_main:
            record = {"summary": summary, "runs": runs, "scoring": scoring, "settings": config.model_dump(mode="json")}
            write_json(Path(args.json), {**record, "reproduce": reproduce("eval/eval_search_cost.py")})
            say(args.json)


if __name__ == "__main__":
    run_script(main)

"""Finds each block's width by binary search, slices the network; writes prune.json, prune.png and pruned/."""

import time

from amp.cli import parse_args
from amp.config import PruneConfig
from amp.runs import run_script


def main() -> None:
    config = parse_args(PruneConfig, __doc__)

    from amp import distributed, report, runs
    from amp.checkpoint import save_tower
    from amp.data import Batches, list_images
    from amp.pruning import EntropyMeter, check_widths, prune
    from amp.scoring import check_scores, load_scores
    from amp.towers import build_tower
    from eval.efficiency import measure_sizes

    with distributed.start() as world:
        folder = world.from_main(lambda: runs.prepare_output(config.output.dir))
        if world.broadcast((folder / "prune.json").exists() and (folder / "pruned").is_dir()):
            record = runs.read_json(folder / "prune.json")
            config = config.with_frame(runs.recorded_frame(record))
            runs.check_same_run(folder / "prune.json", record, runs.describe(config, config.model.weights))
            runs.say(f"already done: {folder / 'prune.json'} and {folder / 'pruned'}")
            return
        scores, scored = load_scores(folder / "scores.safetensors")
        config = config.with_frame(runs.recorded_frame(scored))
        header = runs.describe(config, config.model.weights)
        check_scores(scored, header)
        started = time.monotonic()
        paths = list_images(config.data, "val")
        tower = build_tower(config.model, str(world.device))
        dense_widths = tower.widths
        check_widths(tower, config.prune.widths)
        batches = Batches(paths, tower.transform, config.data, world, config.data.num_val_samples)
        held = [b.to(tower.dtype) for b in runs.progress(batches, "read held-out images", "batch", total=len(batches))]
        batches.say_broken()
        entropy = EntropyMeter(tower, held, config.score.inverse_temperature, world)
        result = prune(tower, scores, entropy, config.prune)
        sizes = measure_sizes(config.model, result.kept)
        cost = {**entropy.cost, "seconds": round(time.monotonic() - started, 2)}
        record = {
            "widths": tower.widths,
            "dense_widths": dense_widths,
            **result.entropies,
            **sizes,
            "cost": cost,
            **header,
        }
        if world.is_main:
            report.plot_pruning(record, folder / "prune.png")
            save_tower(tower, result.kept, header, folder / "pruned")
            runs.write_json(folder / "prune.json", {**record, "reproduce": runs.reproduce("main_prune.py")})
        world.barrier()
        runs.say(report.describe_sizes(sizes["params"], sizes["flops"]))
        if result.final_entropy < result.dense_entropy:
            runs.say(
                "note: the entropy fell, which the signed criterion allows; compare the features before you trust it"
            )
        runs.say(f"widths {tower.widths}; entropy {result.dense_entropy:.4f} -> {result.final_entropy:.4f} nats")
        runs.say(f"wrote {folder}/prune.json, prune.png and pruned/ in {cost['seconds']:.0f} s")


if __name__ == "__main__":
    run_script(main)

"""Measures the cost of the searches (plain, exact, racing, with a refit) and of scoring on one model."""

from pathlib import Path

from studies.search_cost_options import read_options

from amp.run.console import reproduce, run_script, say
from amp.run.sealed import write_json

SCENES = 12_800  # held-out scenes that are painted where there are none


def main() -> None:
    config, plan = read_options(__doc__)

    from studies.scoring_cost import time_reconstruction
    from studies.scoring_step import SCORING, time_scoring
    from studies.search_cost import SearchBenchmark, measure_searches
    from studies.search_cost_table import as_json, summarise, summary_table
    from studies.step import describe_times

    from amp.commands._plan.evaluations import NOWHERE, describe_study
    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.data.scenes import build_scenes
    from amp.run.world import start
    from amp.scoring.criterion import score
    from amp.towers import build_tower

    with start() as world:
        title = f"{config.model.name} ({config.model.weights}), images from {config.data.root}"
        each = f"{len(plan.thresholds)} thresholds and {plan.num_seeds} orders of the images"
        lines = [f"time the scoring, then the searches {', '.join(plan.searches)} for {each}"]
        say(describe_study(title, lines, f"write the numbers to {plan.json}" if plan.json else NOWHERE))
        if config.data.name == "digit_scenes":
            world.from_main(lambda: build_scenes(Path(config.data.root), num_val=SCENES))
        tower = build_tower(config.model, str(world.device))
        train = Batches(list_images(config.data, "train"), tower.transform, config.data, config.data.num_samples)
        by_entropy = config.score.model_copy(update={"criterion": "entropy", "micro_batch": None})
        scores = score(tower, train, by_entropy)
        images_BCSS = next(iter(train)).to(world.device, tower.dtype)
        scoring = time_scoring(tower, by_entropy, config.data.batch_size, 20)
        say("scoring by entropy:\n" + describe_times(scoring, SCORING))
        parts = time_reconstruction(tower, images_BCSS)
        say("scoring by reconstruction: " + ", ".join(f"{name} {took:.3g} s" for name, took in parts.items()))
        runs = measure_searches(SearchBenchmark(config, tower, scores), plan)
        summary = summarise(runs)
        say(f"\nover {len(runs)} runs, mean (worst):\n{summary_table(summary)}")
        if plan.json and world.is_main:
            record = {
                "summary": summary,
                "runs": runs,
                "scoring": scoring,
                "reconstruction": parts,
                "settings": config.model_dump(mode="json"),
            }
            write_json(plan.json, as_json({**record, "reproduce": reproduce("eval/eval_search_cost.py")}))
            say(f"numbers: {plan.json}")


if __name__ == "__main__":
    run_script(main)

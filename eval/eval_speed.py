"""Times zero-shot evaluation: this project against the functions of clip_benchmark, on the same model, data and batch,
in one run. Under torchrun, the main process times both alone, and then all processes together time this project."""

from pathlib import Path

from amp.evaluation.options import parse_speed
from amp.run.console import run_script, say


def main() -> None:
    options = parse_speed(__doc__)
    options.benchmark.check()

    from studies.speed import compare_speeds, show

    from amp.commands._plan.evaluations import describe_evaluation
    from amp.evaluation.results import open_model
    from amp.run.run import Run
    from amp.run.world import start

    with start() as world:
        say(describe_evaluation(options, options.json))
        record = compare_speeds(open_model(options, "fp32", str(world.device)), options)
        show(record)
        if options.json:
            path = Path(options.json)
            Run(options, path.parent, {}, "--json").write(path.name, record, "eval/eval_speed.py")
            say(f"numbers: {options.json}")


if __name__ == "__main__":
    run_script(main)

"""Measures parameters, FLOPs and throughput of a vision tower; compares a pruned tower with its dense one."""

from functools import partial
from pathlib import Path

from amp.evaluation.options import parse_efficiency
from amp.run.console import say


def main() -> None:
    options = parse_efficiency(__doc__)

    from amp.commands._plan.evaluations import after_evaluation, describe_evaluation
    from amp.evaluation.efficiency.record import measure_efficiency
    from amp.evaluation.efficiency.report import show
    from amp.run.run import Run
    from amp.run.world import start

    with start("cpu" if options.meta else None) as world:
        plan = partial(say, describe_evaluation(options, options.json))
        record = world.from_main(lambda: measure_efficiency(options, world.device, plan))
        show(record)
        if options.json:
            path = Path(options.json)
            Run(options, path.parent, {}, "--json").write(path.name, record, "eval/eval_efficiency.py")
            say(f"numbers: {options.json}")
        say(after_evaluation(options))

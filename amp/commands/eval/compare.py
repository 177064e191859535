"""Compares a pruned model with its dense one: size, agreement of features, accuracy if images have labels or captions.

`amp eval compare out/pruned --images other_photos/` needs no labels. The models run one after the other, in fp32.
Writes the metrics as JSON.
"""

from functools import partial

from amp.evaluation.options import parse_compare
from amp.run.console import say


def main() -> None:
    options = parse_compare(__doc__)

    from amp.commands._plan.evaluations import BOTH, after_evaluation, measured, time_teller
    from amp.evaluation.side_by_side.record import measure_comparison, open_comparison, show
    from amp.run.world import start

    with start():
        run, dense = open_comparison(options)
        look = time_teller(options.batch_size, options.num_workers, BOTH)
        show(run, measured(run, run.found(run.name), lambda: dense, partial(measure_comparison, run, look=look)))
        say(after_evaluation(options))

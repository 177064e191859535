"""Pruned beside dense: sizes, agreement on any images, and what labelled or captioned ones allow; writes it as JSON.

`amp eval compare out/pruned --images photos/` needs no labels. The models are measured one after the other, in fp32.
"""

from amp.evaluation.options import parse_compare
from amp.run.console import say


def main() -> None:
    options = parse_compare(__doc__)

    from amp.evaluation.side_by_side.record import measure_comparison, open_comparison, show
    from amp.run.world import start

    with start():
        run = open_comparison(options)
        record = run.found(run.name)
        if record:
            say("already done")
        else:
            record = measure_comparison(run)
        show(run, record)

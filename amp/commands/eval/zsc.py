"""Measures zero-shot classification or retrieval of a dense or a pruned model on one or several datasets.

Writes the metrics of each dataset as JSON, and one table of all datasets as Markdown and CSV, with the paper's numbers
if the paper has some."""

from functools import cache, partial

from amp.evaluation.benchmarks import check_all
from amp.evaluation.options import parse_zeroshot
from amp.run.console import say


def main() -> None:
    each = parse_zeroshot(__doc__)
    check_all(options.benchmark for options in each)

    from amp.commands._plan.evaluations import after_evaluation, measured, time_teller
    from amp.evaluation.results import write_summary
    from amp.evaluation.zeroshot import find_record, measure_zeroshot, open_evaluations, open_evaluator
    from amp.run.world import start

    with start() as world:
        runs = open_evaluations(each)
        found = [find_record(run) for run in runs]
        evaluator = cache(lambda: open_evaluator(runs[0].config))
        look = time_teller(each[0].batch_size, each[0].num_workers)
        records = []
        for run, known in zip(runs, found, strict=True):
            options = run.config
            record = measured(run, known, evaluator, partial(measure_zeroshot, run, look=look))
            title = f"{options.dataset}, {options.task}: {record['num_images']} images in {record['seconds']} s"
            run.show(title, "metric", record)
            records.append(record)
        if world.is_main:
            write_summary(each[0], records, runs[0].folder)
        say(after_evaluation(each[0]))

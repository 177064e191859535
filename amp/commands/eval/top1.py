"""Measures the top-1 accuracy of a classifier on folders of its classes; writes the metrics as JSON."""

from functools import partial

from amp.evaluation.options import parse_top1
from amp.evaluation.readers.class_folders import class_names, folder_to_test
from amp.run.console import say


def main() -> None:
    options = parse_top1(__doc__)
    class_names("--dataset_root", folder_to_test(options.dataset_root))

    from amp.commands._plan.evaluations import after_evaluation, measured, time_teller
    from amp.evaluation.results import open_model
    from amp.evaluation.top1 import measure_top1, open_top1
    from amp.run.world import start

    with start() as world:
        run = open_top1(options)
        look = time_teller(options.batch_size, options.num_workers)
        opened = partial(open_model, options, "fp32", str(world.device))
        record = measured(run, run.found(run.name), opened, partial(measure_top1, run, look=look))
        run.show(f"classifier: {record['num_images']} images in {record['seconds']} s", "metric", record)
        say(after_evaluation(options))

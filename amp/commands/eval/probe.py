"""Measures a linear probe, a logistic regression on a tower's features; writes the metrics as JSON.

The strength of its regularisation is chosen on a part of the training images, as in CLIP.
"""

from functools import partial

from amp.evaluation.dataset_files import check_class_folders
from amp.evaluation.options import parse_probe
from amp.run.console import say


def main() -> None:
    options = parse_probe(__doc__)
    check_class_folders(("--train_root", options.train_root), ("--val_root", options.val_root))

    from amp.commands._plan.evaluations import after_evaluation, measured, time_teller
    from amp.evaluation.probe import measure_probe, open_probe
    from amp.evaluation.results import open_model
    from amp.run.world import start

    with start() as world:
        run = open_probe(options)
        look = time_teller(options.batch_size, options.num_workers)
        opened = partial(open_model, options, "fp32", str(world.device))
        record = measured(run, run.found(run.name), opened, partial(measure_probe, run, look=look))
        images = f"{record['num_images']} test and {record['num_train_images']} training images"
        run.show(f"linear probe: {images}, C = {record['C']:.3g}, in {record['seconds']} s", "metric", record)
        say(after_evaluation(options))

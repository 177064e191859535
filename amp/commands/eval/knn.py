"""Measures the weighted k-nearest-neighbour accuracy of a tower's features; writes the metrics as JSON."""

from functools import partial

from amp.evaluation.dataset_files import check_class_folders
from amp.evaluation.options import parse_knn
from amp.run.console import say


def main() -> None:
    options = parse_knn(__doc__)
    check_class_folders(("--train_root", options.train_root), ("--val_root", options.val_root))

    from amp.commands._plan.evaluations import after_evaluation, measured, time_teller
    from amp.evaluation.knn import measure_knn, open_knn
    from amp.evaluation.results import open_model
    from amp.run.world import start

    with start() as world:
        run = open_knn(options)
        look = time_teller(options.batch_size, options.num_workers)
        opened = partial(open_model, options, "fp32", str(world.device))
        record = measured(run, run.found(run.name), opened, partial(measure_knn, run, look=look))
        images = f"{record['num_images']} test and {record['num_train_images']} training images"
        run.show(f"k-NN: {images}, in {record['seconds']} s", "top-1", record)
        say(after_evaluation(options))

"""Linear probe: a logistic regression on a dense or a pruned tower's features; writes the metrics as JSON.

Its regularisation is chosen on a part of the training images, as in CLIP.
"""

from amp.evaluation.dataset_files import check_class_folders
from amp.evaluation.options import parse_probe
from amp.run.console import say


def main() -> None:
    options = parse_probe(__doc__)
    check_class_folders(("--train_root", options.train_root), ("--val_root", options.val_root))

    from amp.evaluation.probe import measure_probe, open_probe
    from amp.evaluation.results import open_model
    from amp.run.world import start

    with start() as world:
        run = open_probe(options)
        record = run.found(run.name)
        if record:
            say("already done")
        else:
            record = measure_probe(run, open_model(options, "fp32", str(world.device)))
        images = f"{record['num_images']} images, {record['num_train_images']} to learn from"
        run.show(f"linear probe: {images}, C = {record['C']:.3g}, in {record['seconds']} s", "metric", record)

"""Top-1 of a classifier, dense or pruned, on folders of its classes; writes the metrics as JSON."""

from amp.evaluation.options import parse_top1
from amp.evaluation.readers.class_folders import class_names, folder_to_test
from amp.run.console import say


def main() -> None:
    options = parse_top1(__doc__)
    class_names("--dataset_root", folder_to_test(options.dataset_root))

    from amp.evaluation.results import open_model
    from amp.evaluation.top1 import measure_top1, open_top1
    from amp.run.world import start

    with start() as world:
        run = open_top1(options)
        record = run.found(run.name)
        if record:
            say("already done")
        else:
            record = measure_top1(run, open_model(options, "fp32", str(world.device)))
        run.show(f"classifier: {record['num_images']} images in {record['seconds']} s", "metric", record)

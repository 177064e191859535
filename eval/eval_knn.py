"""Weighted k-nearest-neighbour accuracy of a dense or a pruned tower's features; writes the metrics as JSON."""

import argparse
import time
from pathlib import Path
from typing import Any

from amp.evaluate import results
from amp.evaluate.layouts import check_class_folders
from amp.run.console import run_script, say

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm")
KEYS = ("model", "model_type", "pretrained", "train_root", "val_root", "batch_size")


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    results.add_model_options(parser)
    add = parser.add_argument
    add("--dataset_root", metavar="DIR", help="folder that holds train/ and val/")
    add("--train_root", metavar="DIR", help="training images in class folders (default: train/ of --dataset_root)")
    add("--val_root", metavar="DIR", help="validation images in the same classes (default: val/ of --dataset_root)")
    add("--batch_size", type=int, default=256, help="images in one batch on one process (default: %(default)s)")
    add("--num_workers", type=int, default=4, help="loader workers per process (default: %(default)s)")
    add("--output", metavar="JSON", help="the metrics (default: out/eval/DATASET_knn_MODEL_DIGEST.json)")
    args = parser.parse_args()
    results.check_options(parser, args, {"batch_size": 1, "num_workers": 0})
    for split in ("train", "val"):
        if getattr(args, f"{split}_root") is None:
            if args.dataset_root is None:
                parser.error(f"the following arguments are required: --{split}_root (or --dataset_root)")
            setattr(args, f"{split}_root", str(Path(args.dataset_root) / split))
    return args


def main() -> None:
    args = parse_args()
    check_class_folders(("--train_root", args.train_root), ("--val_root", args.val_root))

    from amp.evaluate.knn import Featurizer, open_images
    from amp.run import world as distributed

    with distributed.start() as world:
        header = world.from_main(lambda: results.describe(args, KEYS, results.digest_model(args)))
        words = (Path(args.val_root).absolute().parent.name, "knn")
        path, record = world.from_main(lambda: results.find_result(args, words, header))
        if record:
            say("already done")
        else:
            tower = results.open_model(args, "fp32", str(world.device))
            train: Any = open_images("--train_root", args.train_root, tower.transform)
            val: Any = open_images("--val_root", args.val_root, tower.transform)
            started = time.monotonic()
            metrics = Featurizer(tower, args.batch_size, args.num_workers).accuracies(train, val)
            record = results.write_result(
                path,
                header,
                PACKAGES,
                model=args.model,
                pretrained=args.pretrained,
                metrics=metrics,
                num_images=len(val),
                num_train_images=len(train),
                seconds=round(time.monotonic() - started, 2),
            )
        title = f"k-NN: {record['num_images']} images, {record['num_train_images']} to vote, in {record['seconds']} s"
        results.show(title, "top-1", record, path)


if __name__ == "__main__":
    run_script(main)

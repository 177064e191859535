"""Zero-shot classification or retrieval of a dense or a pruned model; writes the metrics as JSON."""

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amp.config import Precision
from amp.runs import file_sha256, run_script, say, write_json
from eval import results
from eval.benchmarks import NEEDS, Benchmark

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "clip_benchmark")
KEYS = (
    "model",
    "model_type",
    "pretrained",
    "text_pretrained",
    "task",
    "dataset",
    "dataset_root",
    "language",
    "batch_size",
)


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    results.add_model_options(parser)
    add = parser.add_argument
    add(
        "--text_pretrained",
        metavar="CKPT",
        help="weights of the dense model whose text tower a published vision checkpoint goes with (default: none)",
    )
    add("--batch_size", type=int, default=256, help="images in one batch on one process (default: %(default)s)")
    add("--task", choices=[*NEEDS], default="zeroshot_classification", help="what is measured (default: %(default)s)")
    add("--dataset", required=True, metavar="NAME", help="clip_benchmark's name of it, or digit_scenes (required)")
    add("--dataset_root", required=True, metavar="DIR", help="folder of the dataset (required)")
    add("--language", default="en", help="of the class names or the captions (default: %(default)s)")
    add("--save_clf", metavar="FILE", help="write the text classifier here, as safetensors (default: nowhere)")
    add("--load_clfs", nargs="+", default=[], metavar="FILE", help="use the mean of these classifiers (default: none)")
    add("--precision", choices=("fp32", "bf16"), help="of the encoders (default: bf16 on CUDA, fp32 on CPU)")
    add("--num_workers", type=int, default=4, help="loader workers per process (default: %(default)s)")
    add("--output", metavar="JSON", help="the metrics (default: out/eval/DATASET_TASK_MODEL_DIGEST.json)")
    args = parser.parse_args()
    results.check_options(parser, args, {"batch_size": 1, "num_workers": 0})
    if args.task != "zeroshot_classification" and (args.save_clf or args.load_clfs):
        parser.error("argument --save_clf, --load_clfs: zeroshot_retrieval has no text classifier")
    return args


def describe(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What decides the numbers: the options, and the files they name by digest."""
    digests = [*map(file_sha256, args.load_clfs)]
    text = file_sha256(args.text_pretrained)
    return results.describe(args, KEYS, precision=precision, load_clfs_sha256=digests, text_sha256=text)


def find_result(args: argparse.Namespace, header: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """Where the result goes, and the result if it and the classifier to save are there. Raises UserError."""
    path, record = results.find_result(args, (args.dataset, args.task), header)
    if args.save_clf and not results.check_writable("--save_clf", args.save_clf).exists():
        return path, None
    return path, record


def classifier_for(args: argparse.Namespace, evaluator: Any, dataset: Any) -> Any:
    """The (D, C) text classifier, from --load_clfs or from the class names; written to --save_clf."""
    from eval.zeroshot import classifier_header, load_classifiers, save_classifier

    header = classifier_header(evaluator.tower, args.dataset, args.language, dataset)
    if args.load_clfs:
        width = evaluator.embed_width()
        classifier = evaluator.world.from_main(lambda: load_classifiers(args.load_clfs, header, width))
    else:
        classifier = evaluator.text_classifier(dataset.classes, dataset.templates)
    if args.save_clf and evaluator.world.is_main:
        save_classifier(Path(args.save_clf), classifier, header)
        say(f"wrote {args.save_clf}")
    return classifier


def show(record: dict[str, Any], path: Path) -> None:
    """The metrics on the console."""
    from amp.report import table

    title = f"{record['dataset']}, {record['task']}: {record['num_images']} images in {record['seconds']} s"
    shares = [[name, "-" if value is None else f"{100 * value:.2f}"] for name, value in record["metrics"].items()]
    say(f"{title}\n{table(['metric', '%'], shares)}\n{path}")


def main() -> None:
    args = parse_args()
    benchmark = Benchmark(args.task, args.dataset, args.dataset_root, args.language)
    benchmark.check()

    from amp import distributed
    from amp.checkpoint import open_tower
    from eval.zeroshot import Evaluator

    with distributed.start() as world:
        precision: Precision = args.precision or ("bf16" if world.device.type == "cuda" else "fp32")
        header = world.from_main(lambda: describe(args, precision))
        path, record = world.from_main(lambda: find_result(args, header))
        if record:
            say("already done")
        else:
            tower = open_tower(
                args.model, args.model_type, args.pretrained, "fp32", str(world.device), args.text_pretrained
            )
            evaluator = Evaluator(tower, world, args.batch_size, precision, args.num_workers)
            dataset = benchmark.build(tower.transform, world)
            started = time.monotonic()
            if args.task == "zeroshot_retrieval":
                metrics, num_images = evaluator.retrieve(dataset)
            else:
                metrics, num_images = evaluator.classify(dataset, classifier_for(args, evaluator, dataset))
            record = {key: getattr(args, key) for key in ("model", "pretrained", "task", "dataset")}
            record |= {"metrics": metrics, "num_images": num_images, "seconds": round(time.monotonic() - started, 2)}
            record |= {**header, "versions": {package: version(package) for package in PACKAGES}}
            if world.is_main:
                write_json(path, record)
            world.barrier()
        show(record, path)


if __name__ == "__main__":
    run_script(main)

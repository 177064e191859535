"""Zero-shot classification or retrieval of a dense or a pruned model, on one dataset or on several; writes the metrics
of each as JSON, and one table of all as Markdown and CSV, beside the paper's numbers where it has some."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from amp.errors import UserError
from amp.evaluate import results
from amp.evaluate.benchmarks import Benchmark, check_all
from amp.evaluate.layouts import NEEDS
from amp.evaluate.paper import DATASETS, summarise
from amp.run.console import run_script, say
from amp.run.files import file_sha256
from amp.settings.base import Precision

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "clip_benchmark")
MODEL_KEYS = ("model", "model_type", "pretrained", "text_pretrained")
KEYS = (*MODEL_KEYS, "task", "dataset", "dataset_root", "language", "batch_size")


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    results.add_model_options(parser)
    add = parser.add_argument
    add("--text_pretrained", metavar="CKPT", help="dense weights, for the text tower of a published vision checkpoint")
    number: Any = {"type": int, "metavar": "N"}
    add("--batch_size", default=256, help="images in one batch on one process (default: %(default)s)", **number)
    add("--text_batch_size", default=80, help="prompts in one batch on one process (default: %(default)s)", **number)
    add("--task", choices=[*NEEDS], default="zeroshot_classification", help="what is measured (default: %(default)s)")
    names = "clip_benchmark's names, or digit_scenes; 'paper' is the paper's six for classification (required)"
    add("--dataset", required=True, nargs="+", metavar="NAME", help=names)
    where = "folder of the dataset; of several, DIR/NAME, or a pattern with {dataset} or {dataset_cleaned} (required)"
    add("--dataset_root", required=True, metavar="DIR", help=where)
    add("--download", action="store_true", help="let clip_benchmark fetch what is missing (default: touch no network)")
    add("--language", default="en", help="of the class names or the captions (default: %(default)s)")
    several = "of several datasets, a folder or a pattern with {dataset}"
    add("--save_clf", metavar="FILE", help=f"write the text classifier here; {several} (default: nowhere)")
    use = f"use the mean of these text classifiers; {several} (default: none)"
    add("--load_clfs", nargs="+", default=[], metavar="FILE", help=use)
    add("--precision", choices=("fp32", "bf16"), help="of the encoders (default: bf16 on CUDA, fp32 on CPU)")
    add("--num_workers", default=4, help="loader workers per process (default: %(default)s)", **number)
    where = "(default: out/eval/DATASET_TASK_MODEL_DIGEST.json)"
    add("--output", metavar="JSON", help=f"the metrics; {several} {where}")
    where = "(default, of several datasets: TASK_MODEL_DIGEST.md and .csv beside the metrics)"
    add("--table", nargs="+", metavar="FILE", help=f"the table, as .md or .csv {where}")
    args = parser.parse_args()
    results.check_options(parser, args, {"batch_size": 1, "text_batch_size": 1, "num_workers": 0})
    if args.task != "zeroshot_classification" and (args.save_clf or args.load_clfs):
        parser.error("argument --save_clf, --load_clfs: zeroshot_retrieval has no text classifier")
    for file in args.table or []:
        if Path(file).suffix not in (".md", ".csv"):
            parser.error(f"argument --table: {file}: expected a file that ends in .md or .csv")
    return args


def split_args(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each dataset, as if it were the only one. Raises UserError."""
    names = [name for given in args.dataset for name in (DATASETS if given == "paper" else [given])]
    names = list(dict.fromkeys(names))
    several = len(names) > 1

    def own(name: str) -> argparse.Namespace:
        files = {"dataset_root": results.root_of(args.dataset_root, name, several)}
        for option, suffix in (("save_clf", ".safetensors"), ("output", f"_{args.task}.json")):
            if pattern := getattr(args, option):
                files[option] = results.file_of(f"--{option}", pattern, name, suffix, several)
        clfs = [results.file_of("--load_clfs", file, name, ".safetensors", several) for file in args.load_clfs]
        for file in clfs:
            if not Path(file).is_file():
                raise UserError("--load_clfs", f"{file}: no such file")
        return argparse.Namespace(**vars(args) | files | {"dataset": name, "load_clfs": clfs})

    return [own(name) for name in names]


def plan(args: argparse.Namespace, digests: Any, precision: str) -> tuple[dict[str, Any], Path, dict[str, Any] | None]:
    """What decides a dataset's numbers, where its result goes, and the result if that and the classifier are there."""
    more: dict[str, Any] = {"precision": precision, "load_clfs_sha256": [*map(file_sha256, args.load_clfs)]}
    if args.task == "zeroshot_classification" and not args.load_clfs:
        more["text_batch_size"] = args.text_batch_size
        more["text_sha256"] = digests["text_sha256"]
    header = results.describe(args, KEYS, digests, **more)
    path, record = results.find_result(args, (args.dataset, args.task), header)
    if args.save_clf and not results.check_writable("--save_clf", args.save_clf).exists():
        return header, path, None
    return header, path, record


def classifier_for(args: argparse.Namespace, evaluator: Any, dataset: Any) -> Any:
    """The (D, C) text classifier, from --load_clfs or from the class names; written to --save_clf."""
    from amp.evaluate.classifiers import classifier_header, load_classifiers, save_classifier
    from amp.run.world import world

    header = classifier_header(evaluator.tower, args.dataset, args.language, dataset)
    if args.load_clfs:
        width, any_model = evaluator.embed_width(), not evaluator.has_text
        classifier = world().from_main(lambda: load_classifiers(args.load_clfs, header, width, any_model))
    else:
        classifier = evaluator.text_classifier(dataset.classes, dataset.templates)
    if args.save_clf and world().is_main:
        save_classifier(Path(args.save_clf), classifier, header)
        say(f"wrote {args.save_clf}")
    return classifier


def measure(args: argparse.Namespace, evaluator: Any, header: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record of one dataset, which is written."""
    tower = evaluator.tower
    dataset = benchmark_of(args).build(tower.transform)
    started = time.monotonic()
    if args.task == "zeroshot_retrieval":
        metrics, num_images = evaluator.retrieve(dataset)
    else:
        metrics, num_images = evaluator.classify(dataset, classifier_for(args, evaluator, dataset))
    measured = {key: getattr(args, key) for key in ("model", "pretrained", "task", "dataset")}
    measured |= {"base": tower.base["name"], "metrics": metrics, "num_images": num_images}
    seconds = round(time.monotonic() - started, 2)
    return results.write_result(path, header, PACKAGES, **measured, seconds=seconds)


def benchmark_of(args: argparse.Namespace) -> Benchmark:
    """The dataset of `split_args`."""
    return Benchmark(args.task, args.dataset, args.dataset_root, args.language, args.download)


def tabulate(args: argparse.Namespace, records: list[dict[str, Any]], folder: Path) -> None:
    """The table of all datasets, on the console and in its files; without --table only of several."""
    from amp.run.tables import table, write_table

    if len(records) == 1 and not args.table:
        return
    headers, rows = summarise(records)
    identity = [{key: record[key] for key in ("settings", "pretrained_sha256")} for record in records]
    stem = results.slug(args.task, Path(args.model or args.pretrained).stem, results.short_digest(identity))
    files = [Path(file) for file in args.table or (folder / f"{stem}.md", folder / f"{stem}.csv")]
    for file in files:
        write_table(file, headers, rows)
    say("\n".join(["", table(headers, rows), *map(str, files)]))


def main() -> None:
    args = parse_args()
    runs = split_args(args)
    check_all(map(benchmark_of, runs))

    from amp.evaluate.zeroshot import Evaluator
    from amp.run import world as distributed

    with distributed.start() as world:
        precision: Precision = args.precision or ("bf16" if world.device.type == "cuda" else "fp32")
        digests = world.from_main(lambda: results.digest_model(args))
        for file in args.table or []:
            world.from_main(partial(results.check_writable, "--table", file))
        plans = world.from_main(lambda: [plan(run, digests, precision) for run in runs])
        if not all(record for _, _, record in plans):
            tower = results.open_model(args, "fp32", str(world.device))
            evaluator = Evaluator(tower, args.batch_size, precision, args.num_workers, args.text_batch_size)
            if not args.load_clfs:
                evaluator.check_text()
        records = []
        for run, (header, path, record) in zip(runs, plans, strict=True):
            if record:
                say("already done")
            else:
                record = measure(run, evaluator, header, path)
            title = f"{run.dataset}, {run.task}: {record['num_images']} images in {record['seconds']} s"
            results.show(title, "metric", record, path)
            records.append(record)
        if world.is_main:
            tabulate(args, records, plans[0][1].parent)


if __name__ == "__main__":
    run_script(main)

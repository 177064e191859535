"""What a measurement of `amp eval` will do with what, about how long that takes, and what to type next."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from amp.commands._plan.times import describe_time, estimate_features
from amp.commands._plan.words import hardware, named_model
from amp.evaluation.knn import KS
from amp.evaluation.options import (
    CompareOptions,
    EfficiencyOptions,
    KnnOptions,
    ModelOptions,
    ProbeOptions,
    SpeedOptions,
    Top1Options,
    ZeroshotOptions,
)
from amp.evaluation.results import Evaluation, Look
from amp.models.folder import is_model_folder
from amp.run.console import say
from amp.settings.model import RANDOM, ModelSettings
from amp.towers import Tower

NOWHERE = "print the numbers; --json FILE saves them"
BOTH = 2.5  # times the pruned model's passes: the dense one's take longer
Opened = TypeVar("Opened")
OF_ZEROSHOT = {
    "zeroshot_classification": "classify each image by the class whose text embedding is nearest",
    "zeroshot_retrieval": "retrieve captions by image, and images by caption",
}


def measured(
    run: Evaluation[Any],
    found: dict[str, Any] | None,
    open_model: Callable[[], Opened],
    measure: Callable[[Opened], dict[str, Any]],
) -> dict[str, Any]:
    """The record that is there already, or that of a measurement, which says what it will do once the model is open.

    Args:
        found: the record that is there.
        open_model: -> what `measure` takes.
    """
    if found is not None:
        # The table of a comparison names its models; that of one model does not.
        whose = [_TOLD[type(run.config)](run.config)[0]] if isinstance(run.config, ModelOptions) else []
        say("\n".join([f"already done: {run.path(run.name)}", *whose, *found.get("notes", ())]))
        return found
    opened = open_model()
    say(describe_evaluation(run.config, run.path(run.name)))
    return measure(opened)


def describe_evaluation(options: Any, output: Path | str | None) -> str:
    """What a command of `amp eval` will do.

    Args:
        options: of the command.
        output: where its numbers go; None: on the console alone.
    """
    title, lines = _TOLD[type(options)](options)
    return describe_study(title, lines, f"write the numbers to {output}" if output else NOWHERE)


def describe_study(title: str, lines: Sequence[str], last: str) -> str:
    """What is measured with what, and where the numbers go."""
    return "\n".join([f"{title}, on {hardware()}:", *(f"- {line};" for line in lines), f"- {last}."])


def _divided(options: KnnOptions | ProbeOptions) -> tuple[str, str]:
    """The title, and the passes."""
    roots = " and ".join(dict.fromkeys((options.train_root, options.val_root)))
    passes = f"extract the features of all images, in batches of {options.batch_size} (fp32)"
    return f"{_named(options)}, class folders in {roots}", passes


def _knn(options: KnnOptions) -> tuple[str, list[str]]:
    title, passes = _divided(options)
    ks = ", ".join(map(str, KS[:-1]))
    return title, [passes, f"classify each test image by a vote of its {ks} and {KS[-1]} nearest training images"]


def _probe(options: ProbeOptions) -> tuple[str, list[str]]:
    title, passes = _divided(options)
    return title, [passes, "fit logistic regressions on the training features, about 20 to choose the regularisation"]


def _top1(options: Top1Options) -> tuple[str, list[str]]:
    title = f"{_named(options)}, class folders in {options.dataset_root}"
    return title, [f"classify each image with the model's own classifier, in batches of {options.batch_size}"]


def _zeroshot(options: ZeroshotOptions) -> tuple[str, list[str]]:
    lines = [f"{OF_ZEROSHOT[options.task]}, in batches of {options.batch_size} ({options.precision})"]
    if options.builds_classifier:
        lines.insert(0, "embed the class names, each in several prompts")
    return f"{_named(options)}, {options.dataset} in {options.dataset_root}", lines


def _compare(options: CompareOptions) -> tuple[str, list[str]]:
    places = " and ".join(dict.fromkeys(filter(None, (options.images, options.dataset_root))))
    lines = [f"run both models on the same images, one after the other, in batches of {options.batch_size}"]
    lines.append("compare their features, which needs no labels")
    if options.dataset_root or options.captions:
        tasks = " and ".join(options.tasks) if options.tasks else "every task that the labels or captions allow"
        lines.append(f"evaluate both on {tasks}")
    return (
        f"{options.folder} and {options.dense or 'the dense model that it was pruned from'}, images from {places}",
        lines,
    )


def _speed(options: SpeedOptions) -> tuple[str, list[str]]:
    title = f"{_named(options)}, {options.dataset} in {options.dataset_root}"
    turns = f"time clip_benchmark and this project in turn, {options.num_rounds + 1} runs each"
    return title, [f"{turns} ({options.task}); the first run of each is a warm-up"]


def _efficiency(options: EfficiencyOptions) -> tuple[str, list[str]]:
    lines = ["count parameters and FLOPs; for a pruned model, also those of its dense model"]
    if not options.meta:
        compiled = ", after compilation, which takes minutes" if "compiled" in options.modes else ""
        lines.append(
            f"time batches and single images for about {options.seconds} s{compiled}; slow models take longer, "
            "since each is timed at least three times"
        )
    return _named(options), lines


_TOLD: Mapping[type, Callable[[Any], tuple[str, list[str]]]] = {
    KnnOptions: _knn,
    ProbeOptions: _probe,
    Top1Options: _top1,
    ZeroshotOptions: _zeroshot,
    CompareOptions: _compare,
    EfficiencyOptions: _efficiency,
    SpeedOptions: _speed,
}


def _named(options: ModelOptions) -> str:
    folder = folder_of(options)
    if folder:
        return folder
    weights = None if options.pretrained == RANDOM else options.pretrained
    return named_model(ModelSettings(frame=options.model_type, name=str(options.model), pretrained=weights))


def folder_of(options: ModelOptions) -> str | None:
    """The pruned/ or distilled/ folder that is measured; None of a dense model."""
    return next((own for own in (options.model, options.pretrained) if own and is_model_folder(own)), None)


def time_teller(batch_size: int, num_workers: int, models: float = 1.0) -> Look:
    """What says how many images a measurement reads and about how long that takes, once both are known.

    Args:
        models: through which the images go, times the one that is timed.
    """

    def look(tower: Tower, images: Sequence[Any]) -> None:
        seconds = estimate_features(tower, images, batch_size, num_workers)
        if seconds is not None:
            say(f"{sum(map(len, images))} images; {describe_time(seconds * models)}")

    return look


def after_evaluation(options: Any) -> str:
    """What to type after a measurement."""
    if isinstance(options, CompareOptions):
        folder = quote(options.folder)
        return f"next:\n  amp eval efficiency --model {folder}\n  amp export {folder} model.onnx"
    pruned = folder_of(options)
    if isinstance(options, EfficiencyOptions):
        if pruned:
            return f"next:\n  amp export {quote(pruned)} model.onnx"
        return "next: prune it with amp prune; then this command with --model out/NAME/pruned compares the two"
    root: str | None = getattr(options, "dataset_root", None)
    classes = not isinstance(options, ZeroshotOptions) or options.dataset == "imagefolder"
    if pruned and root and classes:
        return f"next:\n  amp eval compare {quote(pruned)} --dataset_root {quote(root)}   # beside its dense model"
    other = "its dense model (--model, --pretrained)" if pruned else "a pruned model (--model out/NAME/pruned)"
    return f"next: run the same command on {other} to compare the two"

"""An accuracy of a student while it trains: k-NN or zero-shot, of the student's own tower, on a part of a dataset.

Light to import: what is missing answers before torch is loaded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.errors import UserError, under
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.dataset_files import check_class_folders
from amp.settings.base import Precision
from amp.settings.distill import DistillConfig

if TYPE_CHECKING:
    from torch import Tensor

    from amp.towers import Tower

_ROOT = "eval.root"


@dataclass(frozen=True)
class Metric:
    """An accuracy of a tower; the higher, the better.

    Attributes:
        name: in log.jsonl and TensorBoard.
        measure: tower -> the same number on every process. Every process takes its readouts equally often, and not
            for gradients.
    """

    name: str
    measure: Callable[["Tower"], float]


def check_metric(config: DistillConfig) -> None:
    """Raises UserError unless what `eval.metric` needs is on disk."""
    own = config.eval
    if own.metric == "knn":
        check_class_folders((_ROOT, str(_root(config) / "train")), (_ROOT, str(_root(config) / "val")))
    elif own.metric == "zeroshot":
        benchmark = _benchmark(config)
        if "/" in benchmark.dataset:
            raise UserError("eval.name", f"{benchmark.dataset} is a stream; give a dataset whose images are in folders")
        with _in_settings_terms():
            benchmark.check()


def build_metric(config: DistillConfig, teacher: "Tower", student: "Tower") -> Metric | None:
    """What `eval.metric` asks for, to be measured on a tower as it is placed for its training; None for the loss.

    Args:
        teacher, student: before they are placed. For zeroshot, what projects images to embeddings is moved to the
            device; the classes' embeddings are those of the teacher's text tower.
    Raises:
        UserError: the dataset cannot be read, or the teacher has no text tower.
    """
    if config.eval.metric == "loss":
        return None
    return (_knn if config.eval.metric == "knn" else _zeroshot)(config, teacher, student)


def _knn(config: DistillConfig, teacher: "Tower", student: "Tower") -> Metric:
    from amp.evaluation.knn import Featurizer, open_images

    own = config.eval
    train, val = (open_images(_ROOT, str(_root(config) / split), teacher.transform) for split in ("train", "val"))
    train, val = _spread(train, own.num_train_samples), _spread(val, own.num_samples)
    if len(train) < own.k:
        raise UserError(_ROOT, f"{_root(config) / 'train'}: {len(train)} images are fewer than eval.k ({own.k})")

    def measure(tower: "Tower") -> float:
        featurizer = Featurizer(tower, own.batch_size, config.data.num_workers, _ROOT, in_step=True)
        return featurizer.accuracies(train, val, (own.k,))[f"knn{own.k}"]

    return Metric("val_knn", measure)


def _zeroshot(config: DistillConfig, teacher: "Tower", student: "Tower") -> Metric:
    from amp.evaluation.zeroshot import Evaluator

    if teacher.encode_text is None:
        raise UserError("eval.metric", f"zeroshot: {teacher.base['name']} has no text tower; allowed: loss, knn")
    own = config.eval
    with _in_settings_terms():
        whole = _benchmark(config).build(teacher.transform)
    classifier_DC = _classifier(teacher, whole)
    dataset = _spread(whole, own.num_samples)
    for tower in (teacher, student):
        _move_projection(tower, config)

    def measure(tower: "Tower") -> float:
        evaluator = Evaluator(tower, own.batch_size, num_workers=config.data.num_workers, option=_ROOT, in_step=True)
        accuracy = evaluator.classify(dataset, classifier_DC)[0].get("acc1")
        if accuracy is None:
            raise UserError(
                "eval.name", f"{own.name} has several labels per image; give a dataset with one label per image"
            )
        return accuracy

    return Metric("val_acc1", measure)


def _classifier(teacher: "Tower", dataset: Any) -> "Tensor":
    """Embeddings of the classes, by the teacher's text tower, which is on the device for as long as that takes."""
    import torch

    from amp.evaluation.zeroshot import Evaluator
    from amp.run.world import world

    inside = {id(tensor) for tensor in (*teacher.visual.parameters(), *teacher.visual.buffers())}
    tensors = [t for t in (*teacher.model.parameters(), *teacher.model.buffers()) if id(t) not in inside]
    before = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.to(world().device)
    precision: Precision = "bf16" if any(tensor.dtype == torch.bfloat16 for tensor in tensors) else "fp32"
    classifier_DC = Evaluator(teacher, precision=precision).text_classifier(dataset.classes, dataset.templates)
    for tensor, data in zip(tensors, before, strict=True):
        tensor.data = data
    return classifier_DC


def _move_projection(tower: "Tower", config: DistillConfig) -> None:
    """Moves what an image's embedding takes besides the vision tower to the device, in its dtype there."""
    from amp.run.world import world

    for name in outside_projection(config):
        parameter = tower.model.get_parameter(name)
        parameter.data = parameter.data.to(world().device)


def outside_projection(config: DistillConfig) -> list[str]:
    """Names in the model of the parameters outside the vision tower that an image's embedding depends on."""
    import torch

    from amp.towers import build_tower

    tower = build_tower(config.teacher.as_model("fp32"), "meta")
    assert tower.encode_image is not None
    inside = {id(parameter) for parameter in tower.visual.parameters()}
    outside = {name: p for name, p in tower.model.requires_grad_(True).named_parameters() if id(p) not in inside}
    side = tower.image_size
    embedding_1D = tower.encode_image(torch.empty(1, 3, side, side, device="meta"))
    gradients = torch.autograd.grad(embedding_1D.sum(), list(outside.values()), allow_unused=True)
    return [name for name, gradient in zip(outside, gradients, strict=True) if gradient is not None]


def _spread(dataset: Any, count: int) -> Any:
    """`count` of a dataset's items, evenly spaced, for they lie sorted by class; all where there are no more."""
    from torch.utils.data import Subset

    total = len(dataset)
    if count >= total:
        return dataset
    places = [index * total // count for index in range(count)]
    part: Any = Subset(dataset, places)
    if hasattr(dataset, "samples"):  # the files' names, for messages
        part.samples = [dataset.samples[place] for place in places]
    return part


def _root(config: DistillConfig) -> Path:
    return Path(config.eval.root or config.data.root)


def _benchmark(config: DistillConfig) -> Benchmark:
    assert config.eval.name is not None
    return Benchmark("zeroshot_classification", config.eval.name, str(_root(config)))


@contextmanager
def _in_settings_terms() -> Iterator[None]:
    """The errors of a benchmark name settings instead of options."""
    with under(_ROOT, instead_of="--dataset_root"), under("eval.name", instead_of="--dataset"):
        yield

"""Zero-shot classification and retrieval: the measurements of clip_benchmark, over any number of processes.

In fp32 they equal those of clip_benchmark on one process to the last digit, on every number of processes. In bf16
the encoders autocast, but the similarities stay in fp32: the 8 bits of bf16 would tie neighbouring classes.

Shapes: B images (of a batch, or all), T texts, C classes, D width of an embedding, K highest classes.
"""

import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k
from PIL import Image
from safetensors import SafetensorError, safe_open
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from amp.checkpoint import write_tensors
from amp.config import Precision
from amp.distributed import World
from amp.errors import UserError
from amp.runs import atomic, progress
from amp.towers import Tower

Metrics = dict[str, float | None]
RECALL_KS = (1, 5, 10)


@dataclass(frozen=True)
class Evaluator:
    """Measures a model with a text encoder, each process on its share of the batches.

    Attributes:
        batch_size: images in one batch on one process.
        precision: 'bf16' autocasts the encoders.
        num_workers: loader workers per process, at most one a core.
    """

    tower: Tower
    world: World
    batch_size: int = 256
    precision: Precision = "fp32"
    num_workers: int = 4

    def __post_init__(self) -> None:
        if self.tower.encode_text is None:
            raise UserError(
                f"--model: {self.tower.base['name']} has no text encoder, as zero-shot tasks need; "
                "a published vision checkpoint takes that of the dense weights in --text_pretrained"
            )

    def embed_width(self) -> int:
        """D of the model."""
        return self._embed_texts(self.tower.make_tokenizer(), ["a"]).shape[1]

    def text_classifier(self, classes: Sequence[str], templates: Any) -> Tensor:
        """(D, C) fp32 on the CPU: for each class the mean of its prompts' embeddings, normalised.

        Args:
            templates: prompts with '{c}' where the class stands, or a dict with the prompts of each class.
        """
        tokenizer = self.tower.make_tokenizer()
        share = range(self.world.rank, len(classes), self.world.size)
        own: dict[int, Tensor] = {}
        for index in progress(share, "text classifier", "class"):
            name = classes[index]
            by_class = isinstance(templates, dict)
            prompts = templates[name] if by_class else [template.format(c=name) for template in templates]
            mean_D = self._embed_texts(tokenizer, prompts).mean(dim=0)
            own[index] = (mean_D / mean_D.norm()).cpu()
        return torch.stack(self._in_order(own), dim=1)

    def classify(self, dataset: Any, classifier_DC: Tensor) -> tuple[Metrics, int]:
        """The metrics and the number of images.

        One label an image: acc1, acc5 (None below five classes), mean_per_class_recall. Several labels an
        image: mean_average_precision.
        """
        classifier_DC = classifier_DC.to(self.world.device)
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images, labels) in self._batches(dataset, default_collate):
            logits_BC = (100.0 * self._embed_images(images) @ classifier_DC).cpu()
            if labels.ndim == 2:
                own[index] = (logits_BC, labels)
            else:
                top_BK = logits_BC.topk(min(5, logits_BC.shape[1])).indices
                # Two pairs of ImageNet's classes share a name; argmax and topk break such ties differently.
                own[index] = (logits_BC.argmax(dim=1), top_BK, labels)
        columns = self._columns(own)
        measure = _average_precision if len(columns) == 2 else _accuracies
        return self.world.broadcast(measure(*columns) if self.world.is_main else None), len(columns[0])

    def retrieve(self, dataset: Any) -> tuple[Metrics, int]:
        """image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5, 10, and the number of images.

        Recall: the share of texts with their image, or of images with one of their texts, in the k nearest.
        """
        tokenizer = self.tower.make_tokenizer()
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images, captions) in self._batches(dataset, image_captions_collate_fn):
            counts_B = torch.tensor([len(of_image) for of_image in captions])
            texts_TD = self._embed_texts(tokenizer, [text for of_image in captions for text in of_image])
            own[index] = (self._embed_images(images).cpu(), texts_TD.cpu(), counts_B)
        columns = self._columns(own)
        return self.world.broadcast(self._recalls(*columns) if self.world.is_main else None), len(columns[0])

    def _recalls(self, images_BD: Tensor, texts_TD: Tensor, counts_B: Tensor) -> Metrics:
        scores_TB = texts_TD @ images_BD.t()
        image_of_T = torch.arange(len(images_BD)).repeat_interleave(counts_B)
        positive_TB = image_of_T[:, None] == torch.arange(len(images_BD))
        metrics: Metrics = {}
        for k in RECALL_KS:
            for side in ("image", "text"):
                scores, positive = (m if side == "image" else m.t() for m in (scores_TB, positive_TB))
                # A batch at a time: the one-hot tensor inside has batch x k x items numbers.
                recall = batchify(
                    recall_at_k,
                    scores,
                    positive,
                    self.batch_size,
                    str(self.world.device),
                    k=min(k, scores.shape[1]),
                )
                metrics[f"{side}_retrieval_recall@{k}"] = (recall > 0).float().mean().item()
        return metrics

    def _embed_images(self, images_BCHW: Tensor) -> Tensor:
        return self._embed(self.tower.encode_image, images_BCHW.to(self.world.device, self.tower.dtype))

    def _embed_texts(self, tokenizer: Any, texts: list[str]) -> Tensor:
        return self._embed(self.tower.encode_text, tokenizer(texts).to(self.world.device))

    def _embed(self, encode: Any, inputs: Tensor) -> Tensor:
        autocast = torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.no_grad(), autocast:
            features = encode(inputs)
        return F.normalize(features.float(), dim=-1)

    def _batches(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> Iterator[tuple[int, Any]]:
        """(index, batch) of this process: batches rank, rank + size, ... of one global list, with no padding."""
        rank, size, workers = self.world.rank, self.world.size, min(self.num_workers, os.cpu_count() or 1)
        if isinstance(dataset, IterableDataset):
            # A stream has no index to enter at, and several workers would mix it: each process reads it whole.
            stream = DataLoader(dataset, self.batch_size, num_workers=min(workers, 1), collate_fn=collate)
            bar = progress(enumerate(stream), "images", "batch")
            yield from (pair for pair in bar if pair[0] % size == rank)
            return
        starts = range(rank * self.batch_size, len(dataset), size * self.batch_size)
        loader: DataLoader[Any] = DataLoader(
            _Items(dataset),
            batch_sampler=[list(range(s, min(s + self.batch_size, len(dataset)))) for s in starts],
            num_workers=workers,
            collate_fn=partial(_collate, collate),
            pin_memory=self.world.device.type == "cuda",
        )
        for start, batch in zip(starts, progress(loader, "images", "batch"), strict=True):
            if isinstance(batch, UserError):
                raise batch
            yield start // self.batch_size, batch

    def _in_order(self, own: Mapping[int, Any]) -> list[Any]:
        """What all processes hold, by ascending index."""
        merged = {index: value for part in self.world.gather_objects(own) for index, value in part.items()}
        return [merged[index] for index in sorted(merged)]

    def _columns(self, own: Mapping[int, tuple[Tensor, ...]]) -> list[Tensor]:
        """The results of all processes' batches, each kind as one tensor in the order of the global list."""
        batches = self._in_order(own)
        if not batches:
            raise UserError("--dataset_root: holds no image")
        return [torch.cat(column) for column in zip(*batches, strict=True)]


class _Items(Dataset[Any]):
    """A dataset whose unreadable items come back as a UserError; raised, workers make a traceback of it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            samples = getattr(self.dataset, "samples", None)
            name = samples[index][0] if samples else f"image {index}"
            return UserError(f"--dataset_root: {name}: cannot be read ({error})", rank_local=True)


def _collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def _accuracies(pred_B: Tensor, top_BK: Tensor, label_B: Tensor) -> Metrics:
    hits_BK = top_BK == label_B[:, None]
    with warnings.catch_warnings():
        # It warns of few images a class, and of predicted classes without an image.
        warnings.simplefilter("ignore", UserWarning)
        recall = float(balanced_accuracy_score(label_B.numpy(), pred_B.numpy()))
    return {
        "acc1": hits_BK[:, 0].sum().item() / len(label_B),
        "acc5": hits_BK.sum().item() / len(label_B) if top_BK.shape[1] == 5 else None,
        "mean_per_class_recall": recall,
    }


def _average_precision(logits_BC: Tensor, labels_BC: Tensor) -> Metrics:
    return {"mean_average_precision": average_precision_per_class(logits_BC, labels_BC).mean().item()}


def classifier_header(tower: Tower, dataset: str, language: str, built: Any) -> dict[str, str]:
    """What a text classifier belongs to, for its file; `built` is the dataset with its classes and templates."""
    name = str(tower.base["name"])
    return {
        "format": "1",
        "frame": str(tower.base["frame"]),
        "model": Path(name).stem if name.endswith(".json") else name,
        "dataset": dataset,
        "language": language,
        "num_classes": str(len(built.classes)),
        "classes_sha256": _digest(built.classes),
        "templates_sha256": _digest(built.templates),
    }


def _digest(texts: Any) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def save_classifier(path: Path, classifier_DC: Tensor, header: Mapping[str, str]) -> None:
    """Writes one tensor `classifier`, and the header, as safetensors."""
    with atomic(path) as partial_path:
        write_tensors(partial_path, {"classifier": classifier_DC}, {**header, "embed_width": str(len(classifier_DC))})


def load_classifiers(paths: Iterable[str], header: Mapping[str, str], embed_width: int) -> Tensor:
    """The mean (D, C) of classifiers from `save_classifier`, or of clip_benchmark's, which are bare tensors.

    Args:
        header: of the model and dataset at hand. Other templates are welcome, and the same dataset in another
            language: their mean is an ensemble.
        embed_width: D of the model at hand.
    Raises:
        UserError: unreadable, more than tensors (never executed), or made for another model or dataset.
    """
    classifiers = []
    for path in paths:
        classifier_DC, found = _read_classifier(path)
        found = {**header, **found}
        translated = found["dataset"] == header["dataset"] and found["language"] != header["language"]
        for key in ("frame", "model") if translated else ("frame", "model", "classes_sha256"):
            if found[key] != header[key]:
                own, other = (f"{h['frame']} {h['model']} on {h['dataset']}" for h in (header, found))
                raise UserError(f"--load_clfs: {path}: made for {other}, not for {own} ({key} differs)")
        shape = [embed_width, int(header["num_classes"])]
        if list(classifier_DC.shape) != shape:
            raise UserError(
                f"--load_clfs: {path}: shape {list(classifier_DC.shape)}; this model and dataset need {shape}, "
                "embedding width by classes"
            )
        classifiers.append(classifier_DC.float())
    return sum((c / len(classifiers) for c in classifiers), torch.zeros(shape))


def _read_classifier(path: str) -> tuple[Tensor, dict[str, str]]:
    """The tensor and its header, which is {} for a bare tensor."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("classifier"), file.metadata() or {}
    except OSError as error:
        raise UserError(f"--load_clfs: {path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols
            classifier = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        refused = "refused: more than tensors, loading it could run code"
        reason = refused if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise UserError(f"--load_clfs: {path}: no text classifier ({reason})") from None
    if not isinstance(classifier, Tensor):
        raise UserError(f"--load_clfs: {path}: holds a {type(classifier).__name__}, expected one tensor")
    return classifier, {}

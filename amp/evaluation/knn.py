"""Weighted k-nearest-neighbour accuracy of a tower's features, over any number of processes.

The numbers do not depend on the number of processes: batches come from one global list, and the neighbours are
searched once, over all features.

Shapes: B images of a batch, N training images, V validation images, Q queries of a chunk, K neighbours, C classes,
D width of a feature.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from amp.errors import UserError
from amp.evaluation.options import KnnOptions
from amp.evaluation.readers.folders import ClassFolders, open_divided
from amp.evaluation.results import Evaluation, Look, open_divided_evaluation
from amp.evaluation.sharding import ShardedBatches
from amp.run.console import progress, say
from amp.run.world import world
from amp.towers import Tower

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
# Numbers in one chunk of the similarity matrix, and in the votes on it: 256 MB in fp32.
CHUNK_SIZE = 2**26


@dataclass(frozen=True)
class Featurizer:
    """The normalised features of labelled images, each process on its share of the batches.

    Attributes:
        tower: in fp32, on the world's device.
        batch_size: images in one batch on one process.
        num_workers: loader workers per process, at most one a core.
        option: that named the images' folder, for messages; `{split}` in it is the split.
        in_step: as of `ShardedBatches`.
    """

    tower: Tower
    batch_size: int = 256
    num_workers: int = 4
    option: str = "--{split}_root"
    in_step: bool = False

    def features(self, images: Dataset[Any], split: Literal["train", "val"]) -> list[Tensor]:
        """Features (N, D) fp32 of length 1 and labels (N,) int64, in the images' order, on the CPU of the main process;
        [] on the others.

        Args:
            images: (C, S, S) fp32 and the label of each, as of `open_images`.
            split: which they are, for the progress bar and messages.
        Raises:
            UserError: an image cannot be read.
        """
        batches = ShardedBatches(self.batch_size, self.num_workers, self.in_step)
        option = self.option.format(split=split)
        own: dict[int, tuple[Tensor, ...]] = {}
        for index, (images_BCHW, labels_B) in batches.batches(images, default_collate, option, f"{split} images"):
            own[index] = (self._feature(images_BCHW), labels_B)
        return batches.columns(own, option)

    @torch.no_grad()
    def _feature(self, images_BCHW: Tensor) -> Tensor:
        features_BD = self.tower.feature(images_BCHW.to(world().device, self.tower.dtype))
        features_BD = F.normalize(features_BD.float(), dim=-1).cpu()
        if not features_BD.isfinite().all():
            raise UserError("--model", f"{self.tower.base['name']}: its features are NaN or infinite", rank_local=True)
        return features_BD

    def accuracies(self, train: Dataset[Any], val: Dataset[Any], ks: Sequence[int] = KS) -> dict[str, float]:
        """`{knnK: share of validation images whose class the K nearest training images vote for}`, K of ascending `ks`.

        A K above the number of training images is left out, and a line says so.
        Raises:
            UserError: fewer training images than the smallest K, or an image that cannot be read.
        """
        count = len(train)  # type: ignore[arg-type]
        if count < ks[0]:
            raise UserError(self.option.format(split="train"), f"{count} images are too few; the smallest k is {ks[0]}")
        if skipped := [k for k in ks if k > count]:
            say(f"skipped k = {', '.join(map(str, skipped))}: there are only {count} training images")
        ks = [k for k in ks if k <= count]
        return accuracies_of(self.features(train, "train"), self.features(val, "val"), ks)


def accuracies_of(of_train: list[Tensor], of_val: list[Tensor], ks: Sequence[int]) -> dict[str, float]:
    """`{knnK: share}`, as of `Featurizer.accuracies`, from what `Featurizer.features` gives; K of `ks`, ascending."""

    def measure() -> dict[str, float]:
        (train_ND, train_N), (val_VD, val_V), device = of_train, of_val, world().device
        predicted = vote(train_ND.to(device), train_N, val_VD.to(device), ks)
        return {f"knn{k}": (of_k_V == val_V).double().mean().item() for k, of_k_V in predicted.items()}

    return world().from_main(measure)


def vote(
    train_ND: Tensor, train_N: Tensor, val_VD: Tensor, ks: Sequence[int], chunk_size: int = CHUNK_SIZE
) -> dict[int, Tensor]:
    """`{k: (V,) predicted classes, on the CPU}`: the class with the most votes of the k nearest training images.

    A neighbour of cosine similarity s has exp(s / TEMPERATURE) votes, as in DINO's evaluation. Votes are summed
    in fp64, in one order.

    Args:
        train_ND, val_VD: fp32 features of length 1, on one device.
        train_N: int64 labels, on the CPU.
        ks: ascending, at most N.
        chunk_size: numbers that one chunk of the similarities, or of the votes, may hold.
    """
    num_classes = int(train_N.max()) + 1
    rows = max(1, chunk_size // max(len(train_ND), num_classes))
    chunks: dict[int, list[Tensor]] = {k: [] for k in ks}
    for val_QD in progress(val_VD.split(rows), "neighbours", "chunk"):
        similarity_QK, nearest_QK = (val_QD @ train_ND.t()).topk(ks[-1])
        votes_QK = (similarity_QK.cpu().double() / TEMPERATURE).exp()
        labels_QK = train_N[nearest_QK.cpu()]
        for k in ks:
            votes_QC = torch.zeros(len(val_QD), num_classes, dtype=torch.float64)
            chunks[k].append(votes_QC.scatter_add_(1, labels_QK[:, :k], votes_QK[:, :k]).argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in chunks.items()}


def open_images(option: str, root: str, transform: Any) -> Dataset[Any]:
    """The images of class folders, labels by the folders' sorted names.

    Args:
        option: that named the folder, for messages.
    Raises:
        UserError: a class folder holds no image.
    """
    return ClassFolders(option, root, transform)


def open_knn(options: KnnOptions) -> Evaluation[KnnOptions]:
    """The evaluation; nothing is measured. Raises UserError where its file cannot be written."""
    return open_divided_evaluation(options, "knn")


def measure_knn(run: Evaluation[KnnOptions], tower: Tower, look: Look | None = None) -> dict[str, Any]:
    """The record, which is written: `{metrics, num_images, num_train_images, seconds, ...}`."""
    options = run.config
    train, val = open_divided(options.train_root, options.val_root, options.held_out, tower.transform)
    if look:
        look(tower, (train, val))
    started = time.monotonic()
    metrics = Featurizer(tower, options.batch_size, options.num_workers).accuracies(train, val)
    record = {
        "model": options.model,
        "pretrained": options.pretrained,
        "metrics": metrics,
        "num_images": len(val),
        "num_train_images": len(train),
        "seconds": round(time.monotonic() - started, 2),
    }
    return run.write(run.name, record)

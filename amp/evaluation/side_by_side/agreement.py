"""How far two models agree on images, which needs no labels.

Shapes: B images of a batch, N images, C classes, D width of a feature, Q images of a chunk.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.evaluation.knn import CHUNK_SIZE
from amp.evaluation.readers.folders import ImageFiles
from amp.evaluation.sharding import ShardedBatches
from amp.run.world import world
from amp.towers import Tower

Logits = Callable[[Tensor], Tensor]
TIE = 1e-6  # similarities that differ by less are equal: copies of an image are as near as each other


def read_outputs(
    tower: Tower, images: ImageFiles, logits: Logits | None, batches: ShardedBatches, option: str
) -> list[Tensor]:
    """Features (N, D) fp32 of length 1, and with `logits` the class (N,) of each image; on the CPU of the main process,
    [] on the others.

    Args:
        logits: images (B, 3, S, S) -> (B, C), of the model's classifier or of its text classifier; None without either.
        option: that named the images' folder, for messages.
    Raises:
        UserError: an image cannot be read.
    """
    own: dict[int, tuple[Tensor, ...]] = {}
    for index, (images_BCHW,) in batches.batches(images, list, option, "agreement"):
        images_BCHW = images_BCHW.to(world().device, tower.dtype)
        with torch.no_grad():
            outputs = [F.normalize(tower.feature(images_BCHW).float(), dim=-1).cpu()]
            if logits is not None:
                outputs.append(logits(images_BCHW).argmax(dim=1).cpu())
        own[index] = tuple(outputs)
    return batches.columns(own, option)


def agree(dense: list[Tensor], pruned: list[Tensor]) -> dict[str, float | None]:
    """How far what `read_outputs` gives of two models is the same, on every process.

    `cosine_mean`, `cosine_p5` (of one image in twenty it is less) and `cosine_min`, of an image's two features; None
    where these are not as wide. `same_nearest`: the share of images whose nearest other image is the same; None of one
    image. `same_top1`: of images that both take for one class; None without a classifier.
    """

    def measure() -> dict[str, float | None]:
        of_dense, of_pruned = dense[0], pruned[0]
        cosines: dict[str, float | None] = dict.fromkeys(("cosine_mean", "cosine_p5", "cosine_min"))
        if of_dense.shape == of_pruned.shape:
            cosine_N = F.cosine_similarity(of_dense.double(), of_pruned.double())
            values = (cosine_N.mean(), cosine_N.quantile(0.05), cosine_N.min())
            cosines = {key: value.item() for key, value in zip(cosines, values, strict=True)}
        same = (dense[1] == pruned[1]).double().mean().item() if len(dense) == len(pruned) == 2 else None
        return {**cosines, "same_nearest": same_nearest(of_dense, of_pruned), "same_top1": same}

    return world().from_main(measure)


@torch.no_grad()
def same_nearest(dense_ND: Tensor, pruned_ND: Tensor, chunk_size: int = CHUNK_SIZE) -> float | None:
    """The share of images whose nearest other one of the pruned features is one of the nearest of the dense features.

    Args:
        dense_ND, pruned_ND: of length 1; the widths may differ.
        chunk_size: numbers that one chunk of the similarities may hold.
    """
    count, device = len(dense_ND), world().device
    if count < 2:
        return None
    dense_ND, pruned_ND, hits = dense_ND.to(device), pruned_ND.to(device), 0
    for places_Q in torch.arange(count, device=device).split(max(1, chunk_size // count)):
        similar_QN, of_pruned_QN = (features_ND[places_Q] @ features_ND.t() for features_ND in (dense_ND, pruned_ND))
        for similarities_QN in (similar_QN, of_pruned_QN):
            similarities_QN.scatter_(1, places_Q[:, None], -torch.inf)
        found_Q = similar_QN.gather(1, of_pruned_QN.argmax(dim=1, keepdim=True))[:, 0]
        hits += int((found_Q >= similar_QN.amax(dim=1) - TIE).sum())
    return hits / count

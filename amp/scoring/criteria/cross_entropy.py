"""Taylor scores of the cross-entropy loss in zero-shot classification with CLIP; a baseline in the paper.

B images of this process's share, C classes, S side in pixels, E width of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.batches import Batches
from amp.errors import UserError
from amp.run.world import world
from amp.scoring.criterion import Scoring
from amp.scoring.memory import taylor_bytes
from amp.scoring.taylor import TaylorScorer, signed_or_absolute
from amp.settings.score import ScoreSettings
from amp.towers import Tower

PASSES = {"activations": taylor_bytes}
ZERO_SHOT_SCALE = 100.0  # of CLIP's cosine similarities, as in clip_benchmark


def zero_shot_cross_entropy(embedding_BE: Tensor, classifier_EC: Tensor, label_B: Tensor | None = None) -> Tensor:
    """Sum over images of -log p_i(y_i), p = softmax(100 * cosine of image and class), as CLIP classifies.

    Without labels y_i is the network's own prediction, argmax p_i: against its own soft p_i the gradient would be zero.

    Args:
        embedding_BE: image embeddings (B, E), need not be normalised.
        classifier_EC: normalised text embeddings of the classes (E, C).
        label_B: int64 classes, or None.
    Returns:
        scalar fp32, in nats.
    """
    logits_BC = ZERO_SHOT_SCALE * F.normalize(embedding_BE.float(), dim=-1) @ classifier_EC
    return F.cross_entropy(logits_BC, logits_BC.argmax(dim=1) if label_B is None else label_B, reduction="sum")


def score(scoring: Scoring) -> list[Tensor]:
    """Mean over images of |sum over tokens of a * dL/da|, L the mean cross entropy over each global batch.

    Raises:
        UserError: the model has no text tower, or the folders of the images are not as many as the classes.
    """
    settings, labels = scoring.settings, None
    if settings.labels == "folders":
        labels = folder_labels(scoring.images, len(settings.classes or ()))
    return score_classification(scoring, class_embeddings(scoring.tower, settings), labels)


def score_classification(scoring: Scoring, classifier_EC: Tensor, labels: Sequence[int] | None) -> list[Tensor]:
    """The same with a given classifier.

    Args:
        labels: the classes of this process's images in their order; None: the network's own predictions.
    """
    tower = scoring.tower
    assert tower.encode_image is not None
    with TaylorScorer(tower.slots, signed_or_absolute(scoring.settings.absolute)) as scorer:
        for images_BCSS in scoring.steps(scorer):
            first, last = scorer.num_images, scorer.num_images + len(images_BCSS)
            label_B = None if labels is None else torch.tensor(labels[first:last], device=world().device)
            embedding_BE = scorer.embed(
                tower.encode_image, images_BCSS, tower.blocks.values(), scoring.settings.micro_batch
            )
            loss = zero_shot_cross_entropy(embedding_BE, classifier_EC, label_B)
            scorer.step(loss / (len(images_BCSS) * world().size), len(images_BCSS))
        return scorer.scores()


@torch.no_grad()
def class_embeddings(tower: Tower, settings: ScoreSettings) -> Tensor:
    """(E, C) the normalised text embeddings of the classes. Raises UserError where the model has no text tower."""
    if tower.encode_text is None or tower.encode_image is None:
        raise UserError(
            "score.criterion",
            f"cross_entropy: {tower.base['name']} has no text encoder to classify with; use entropy or kl, which "
            "need none",
        )
    template = settings.template or "a photo of a {c}"
    tokens = tower.make_tokenizer()([template.replace("{c}", name) for name in settings.classes or ()])
    return F.normalize(tower.encode_text(tokens.to(world().device)).float(), dim=-1).T


def folder_labels(images: Batches | Sequence[Tensor], num_classes: int) -> list[int]:
    """The classes of this process's images, in order: places of their folders among the sorted ones.

    An unreadable image keeps the label of its place in the listing.

    Raises:
        UserError: the folders are not as many as the classes, or the images lie in none.
    """
    listed = images.paths if isinstance(images, Batches) else ()
    paths = [path for path in listed if isinstance(path, Path)]
    if not isinstance(images, Batches) or len(paths) < len(listed):
        raise UserError("score.labels", "folders: the images of shards are not in folders; use score.labels: null")
    folders = sorted({path.parent for path in paths})
    if len(folders) != num_classes:
        raise UserError(
            "score.labels",
            f"folders: {images.settings.root} holds images in {len(folders)} folders, but score.classes "
            f"names {num_classes}; use one folder per class, or score.labels: null",
        )
    place = {folder: index for index, folder in enumerate(folders)}
    size, order = images.settings.batch_size, images.order(0)
    share = world().share(size)
    own = [i for batch in range(len(images)) for i in order[batch * size : (batch + 1) * size][share]]
    return [place[paths[i].parent] for i in own]

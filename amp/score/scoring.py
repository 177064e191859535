"""Scores of every hidden neuron of every block, by one of the criteria.

B images of this process's share, A of the global batch, D width, H hidden width, E width of an embedding, C classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.batches import Batches
from amp.errors import UserError
from amp.run.console import progress
from amp.run.world import world
from amp.score.criteria.cross_entropy import zero_shot_cross_entropy
from amp.score.criteria.diversity import weight_diversity
from amp.score.criteria.kl import sampled_surprisal
from amp.score.criteria.magnitude import weight_magnitude
from amp.score.criteria.reconstruction import reconstruction_scores
from amp.score.criteria.variance import VarianceScorer
from amp.score.state import ScoringState, Sums
from amp.score.taylor import Fold, TaylorScorer
from amp.settings.score import ScoreSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower
from amp.towers.slots import MlpSlot

NO_IMAGES = ("magnitude", "diversity", "random")


def score(
    tower: Tower,
    batches: Iterable[Tensor],
    settings: ScoreSettings,
    labels: Sequence[int] | None = None,
    state: ScoringState | None = None,
) -> list[Tensor]:
    """What `settings.criterion` makes of every neuron: one (H,) fp32 tensor a block, equal on every process.

    entropy, cross_entropy and kl take a backward pass a batch, variance a forward pass, reconstruction both, the others
    no image.

    Args:
        batches: local shares (B / processes, C, S, S) of the global batches.
        labels: the classes of this process's images in their order; None: the network's own predictions.
        state: keeps the sums now and then, and `batches` are those that it has not seen.
    Raises:
        UserError: a criterion that this tower does not have, or values that are not finite.
    """
    if settings.criterion == "entropy":
        scale, absolute = settings.inverse_temperature, settings.absolute
        return score_entropy(tower, batches, scale, absolute, settings.micro_batch, state)
    if settings.criterion == "cross_entropy":
        classifier_EC = class_embeddings(tower, settings)
        return score_cross_entropy(tower, batches, classifier_EC, labels, settings.absolute, state)
    if settings.criterion == "kl":
        return score_kl(tower, batches, settings.inverse_temperature, settings.seed, state)
    if settings.criterion == "reconstruction":
        return reconstruction_scores(
            tower.slots,
            tower.feature,
            lambda: (images_BCHW.to(world().device, tower.dtype, non_blocking=True) for images_BCHW in batches),
            settings.seed,
            settings.micro_batch,
        )
    if settings.criterion == "variance":
        return score_variance(tower, batches, state)
    if settings.criterion == "magnitude":
        return [weight_magnitude(neuron_rows(slot), slot.out_projection.weight) for slot in tower.slots]
    if settings.criterion == "diversity":
        return [weight_diversity(neuron_rows(slot)) for slot in progress(tower.slots, "score", "block")]
    return score_random(tower.slots, settings.seed)


def score_entropy(
    tower: Tower,
    batches: Iterable[Tensor],
    inverse_temperature: float,
    absolute: bool,
    micro_batch: int | None = None,
    state: ScoringState | None = None,
) -> list[Tensor]:
    """Taylor scores of the entropy of each global batch (AMP, arXiv 2603.08100).

    The gathered rows' entropy is the global one on every process, and the mean of scores over batches of one size is
    the mean over images.

    Args:
        micro_batch: images in one backward pass. The entropy's gradient at the features of the whole batch, which a
            forward pass without a graph gives, is handed to one part of the batch after another.
    """
    with TaylorScorer(tower.slots, _fold(absolute)) as scorer:
        for images_BCHW in _steps(scorer, tower, batches, state):
            if micro_batch is None or micro_batch >= len(images_BCHW):
                feature_BD = world().gather(tower.feature(images_BCHW))
                scorer.step(information_entropy(feature_BD, inverse_temperature), len(images_BCHW))
                continue
            parts = images_BCHW.split(micro_batch)
            with scorer.paused(), torch.no_grad():
                feature_BD = torch.cat([tower.feature(part) for part in parts])
            loss = information_entropy(world().gather(feature_BD.requires_grad_()), inverse_temperature)
            (gradient_BD,) = torch.autograd.grad(loss, feature_BD)
            for part, gradient in zip(parts, gradient_BD.split(micro_batch), strict=True):
                scorer.step((tower.feature(part) * gradient).sum(), len(part))
        return scorer.scores()


def score_cross_entropy(
    tower: Tower,
    batches: Iterable[Tensor],
    classifier_EC: Tensor,
    labels: Sequence[int] | None,
    absolute: bool,
    state: ScoringState | None = None,
) -> list[Tensor]:
    """Taylor scores of the mean cross entropy of the CLIP's zero-shot classification over each global batch."""
    assert tower.encode_image is not None
    with TaylorScorer(tower.slots, _fold(absolute)) as scorer:
        for images_BCHW in _steps(scorer, tower, batches, state):
            first, last = scorer.num_images, scorer.num_images + len(images_BCHW)
            label_B = None if labels is None else torch.tensor(labels[first:last], device=world().device)
            loss = zero_shot_cross_entropy(tower.encode_image(images_BCHW), classifier_EC, label_B)
            scorer.step(loss / (len(images_BCHW) * world().size), len(images_BCHW))
        return scorer.scores()


def score_kl(
    tower: Tower,
    batches: Iterable[Tensor],
    inverse_temperature: float,
    seed: int,
    state: ScoringState | None = None,
) -> list[Tensor]:
    """Second-order growth of KL(p_dense || p_pruned), p an image's similarities to its global batch.

    s_j = 1/2 mean over images of (sum over tokens of a * d(-log p(y))/da)^2, y drawn once an image from p.
    """
    generator, skipped = torch.Generator().manual_seed(seed), state.num_batches if state else 0
    with TaylorScorer(tower.slots, lambda products_BH: products_BH.square() / 2) as scorer:
        for images_BCHW in _steps(scorer, tower, batches, state):
            local, size = len(images_BCHW), len(images_BCHW) * world().size
            # The draws of the whole batch on every process, lest they depend on how many there are.
            for _ in range(1 + skipped):
                noise_AA = torch.rand(size, size, generator=generator)
            skipped = 0
            noise_AA = noise_AA.clamp(min=torch.finfo(torch.float32).tiny)
            noise_BA = noise_AA[world().rank * local : (world().rank + 1) * local].to(world().device)
            feature_BD = tower.feature(images_BCHW)
            anchor_AD = world().gather(feature_BD.detach())
            scorer.step(sampled_surprisal(feature_BD, anchor_AD, inverse_temperature, noise_BA), local)
        return scorer.scores()


@torch.no_grad()
def score_variance(tower: Tower, batches: Iterable[Tensor], state: ScoringState | None = None) -> list[Tensor]:
    """Variance of every neuron's activation over tokens and images (VBP, arXiv 2507.12988)."""
    with VarianceScorer(tower.slots) as scorer:
        for images_BCHW in _steps(scorer, tower, batches, state):
            tower.feature(images_BCHW)
        return scorer.scores()


def score_random(slots: Sequence[MlpSlot], seed: int) -> list[Tensor]:
    """Uniform random scores, a baseline: one (H,) fp32 tensor a block."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(slot.hidden_width, generator=generator) for slot in slots]


def neuron_rows(slot: MlpSlot) -> Tensor:
    """(H, D) the in-projection weights of each neuron; of a gated MLP (H, 2D), gate and value side by side."""
    weights = [linear.weight for linear in slot.in_projections]
    return torch.cat(list(weights[0].chunk(2)) if slot.packed else weights, dim=1)


@torch.no_grad()
def class_embeddings(tower: Tower, settings: ScoreSettings) -> Tensor:
    """(E, C) the normalised text embeddings of the classes. Raises UserError where the model has no text tower."""
    if tower.encode_text is None or tower.encode_image is None:
        raise UserError(
            "score.criterion",
            f"cross_entropy: {tower.base['name']} has no text encoder to classify with; entropy and kl need none",
        )
    template = settings.template or "a photo of a {c}"
    tokens = tower.make_tokenizer()([template.format(c=name) for name in settings.classes or ()])
    return F.normalize(tower.encode_text(tokens.to(world().device)).float(), dim=-1).T


def folder_labels(batches: Batches, settings: ScoreSettings) -> list[int] | None:
    """The classes of this process's images in the order of `batches`: places of their folders among the sorted ones.

    None unless `settings` ask for them. An unreadable image keeps the label of its place in the listing.
    Raises:
        UserError: the folders are not as many as the classes.
    """
    if (settings.criterion, settings.labels) != ("cross_entropy", "folders"):
        return None
    paths = [path for path in batches.paths if isinstance(path, Path)]
    if len(paths) < len(batches.paths):
        raise UserError(
            "score.labels", "folders: the images of shards lie in no folders; score.labels: null needs none"
        )
    folders, num_classes = sorted({path.parent for path in paths}), len(settings.classes or ())
    if len(folders) != num_classes:
        raise UserError(
            "score.labels",
            f"folders: {batches.settings.root} holds images in {len(folders)} folders, score.classes "
            f"names {num_classes}; one folder a class is needed, or score.labels: null",
        )
    place = {folder: index for index, folder in enumerate(folders)}
    size, order = batches.settings.batch_size, batches.order(0)
    share = batches.world.share(size)
    own = [i for batch in range(len(batches)) for i in order[batch * size : (batch + 1) * size][share]]
    return [place[paths[i].parent] for i in own]


def _fold(absolute: bool) -> Fold:
    return torch.abs if absolute else torch.positive


def _steps(scorer: Sums, tower: Tower, batches: Iterable[Tensor], state: ScoringState | None) -> Iterator[Tensor]:
    """The batches on the device, each a step of the scorer; its sums are taken up, and kept now and then."""
    if state is not None:
        state.restore(scorer)
    for images_BCHW in batches:
        yield images_BCHW.to(world().device, tower.dtype, non_blocking=True)
        if state is not None:
            state.step(scorer)

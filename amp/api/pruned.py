"""`amp.prune`: a smaller model of a model object, without labels and without files."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from amp.api.images import Images, arguments_named, open_images
from amp.api.objects import Known, device_of, remember, restore, unwrapped, working_copy
from amp.api.settings import Asked
from amp.data.listing import few
from amp.errors import UserError, under
from amp.export import compile_blocks
from amp.models.native import settle
from amp.pruning import Look, Pruned, check_possible, networks_over, relative_size
from amp.pruning import prune as prune_tower
from amp.pruning.report import describe_errors, describe_features, describe_kept, describe_sizes, draw_pruning
from amp.run.console import say
from amp.run.identity import versions
from amp.run.world import alone
from amp.scoring import reads_images, score, score_heads
from amp.settings.prune import PruneConfig
from amp.statistics.kept_moments import KeptMoments
from amp.towers import Tower, in_order, with_attention, wrap_tower

HOW = "pass model={'name': ..., 'kwargs': {...}} to amp.prune, with the arguments of the library's factory"


@dataclass(frozen=True)
class Report:
    """The report of a pruning; prints as a table. `report.widths` is short for `report.record["widths"]`.

    Attributes:
        record: as in `prune.json`: `widths`, `dense_widths`, `params` and `flops` as `{dense, pruned}`, `dense_entropy`
            and `final_entropy` in nats, `probes` of a search, `compensation` (the error of every block's MLP output),
            `feature_cosine` (mean cosine similarity of pruned and dense features on held-out images; if there was a
            recovery, also `feature_cosine_before_recovery`), `cost`.
    """

    record: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        # `report.widths` is `report.record["widths"]`.
        if name.startswith("_") or name == "record" or name not in self.record:
            raise AttributeError(f"the report has no {name!r}")
        return self.record[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.record]

    def __str__(self) -> str:
        own = self.record
        lines = [describe_sizes(own["params"], own["flops"])]
        if own.get("compensation"):
            lines.append(describe_errors(own["compensation"]))
        lines.append(describe_kept("hidden neurons", own["widths"], own["dense_widths"]))
        if "heads" in own:
            lines.append(describe_kept("attention heads", own["heads"], own["dense_heads"]))
        lines.append(f"entropy of held-out features: {own['dense_entropy']:.4f} -> {own['final_entropy']:.4f} nats")
        lines.append(describe_features(own))
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        """In a notebook, with its table drawn."""
        rows = [line for line in str(self).splitlines() if line.startswith("|")]
        rest = [line for line in str(self).splitlines() if not line.startswith("|")]
        return "\n".join([*rows, "", *(f"{line}  " for line in rest)])

    def plot(self) -> Figure:
        """Draws the width of every block and, after a search, the entropy of every probe."""
        return draw_pruning(self.record)


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """A pruned model, with what is needed to make one of another size.

    Attributes:
        model: the smaller model, of the same class, device, precision and train or eval mode as the dense one. It
            shares no parameters with the dense model and can be trained.
        report: sizes, widths and measurements (`Report`).
        transform: the evaluation transform, PIL image -> (C, S, S) fp32.
    """

    model: nn.Module
    report: Report
    transform: Any
    _work: "_Work" = field(repr=False)

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}, pruned\n{self.report}"

    def resize(
        self,
        params: float | None = None,
        flops: float | None = None,
        throughput: float | None = None,
        latency: float | None = None,
        *,
        compensation: str | None = None,
    ) -> "PrunedModel":
        """Prunes the same dense model to another size, with the same scores: `pruned.resize(params=0.45)`.

        The dense model that `amp.prune` was given must not have changed. A `sequential` refit reads the images again.
        After `amp.prune(..., keep_moments=True)`, `resize(params=0.45, compensation="ridge")` reads no images.

        Args:
            params: as for `amp.prune`; give exactly one of the four sizes.
            flops: as for `amp.prune`.
            throughput: as for `amp.prune`.
            latency: as for `amp.prune`.
            compensation: the refit to use; None: that of this model.

        Returns:
            a new pruned model; this one does not change.

        Raises:
            UserError: no size or several sizes are given, or the size is out of reach.
        """
        sizes = {"params": params, "flops": flops, "throughput": throughput, "latency": latency}
        if sum(size is not None for size in sizes.values()) != 1:
            raise UserError("resize", "give exactly one of params=0.45, flops=0.45, throughput=2 and latency=0.5")
        with computing():
            return self._work.sliced(self._work.asked.of_size(sizes, compensation))


@dataclass(frozen=True, eq=False)
class _Work:
    """What a pruning has to hand: the dense model, its scores, and the images."""

    dense: nn.Module
    asked: Asked
    images: Images
    scores: list[Tensor]
    head_scores: list[Tensor]
    moments: KeptMoments | None
    seen_dense: Look | None = None

    def sliced(self, asked: Asked, tower: Tower | None = None) -> PrunedModel:
        """A model of a size.

        Args:
            tower: around a working copy of the dense model; None makes one.
        """
        counts = self.images.config.data
        config = asked.config(counts.num_samples or asked.most, counts.num_val_samples or asked.most)
        with alone(device_of(self.dense)):
            if tower is None:
                whole = wrap_tower(working_copy(self.dense), asked.model)
                tower = with_attention(whole, config.attention if self.head_scores else "none")
            started = time.monotonic()
            pruned, cost = self._slice(tower, config)
            tower = pruned.without_whole_heads(tower)
        settle(tower)
        restore(tower.model, self.dense)
        record = {**pruned.record, "cost": {**cost, "seconds": round(time.monotonic() - started, 2)}}
        provenance = {"settings": config.decisive(), "versions": versions()}
        remember(tower.model, Known(tower, pruned.kept, provenance, record))
        work = replace(self, asked=asked, seen_dense=pruned.seen_dense)
        return PrunedModel(tower.model, Report(record), tower.transform, work)

    def _slice(self, tower: Tower, config: PruneConfig) -> tuple[Pruned, dict[str, int]]:
        images = self.images
        scores = in_order(self.scores, self.head_scores) if tower.heads else self.scores
        with networks_over(tower, scores, config, images.held_out, images.calibration, known=self.moments) as networks:
            size_of = relative_size(config.prune, tower, networks.journal)
            return prune_tower(networks, config.prune, size_of, self.seen_dense), networks.held_out.cost


def prune(
    model: nn.Module,
    images: Any,
    /,
    params: float | None = None,
    *,
    flops: float | None = None,
    throughput: float | None = None,
    latency: float | None = None,
    held_out: Any = None,
    **settings: Any,
) -> PrunedModel:
    """Prunes the MLPs of a vision transformer (AMP, arXiv 2603.08100), without labels: `amp.prune(model, images, 0.6)`.

    The given model does not change; while both exist, the memory holds both.

    Args:
        model: a model object of timm, open_clip or transformers; it may be wrapped in torch.compile or
            DistributedDataParallel. It is pruned on the device it is on.
        images: a folder, a DataLoader, a dataset, or a list of PIL images, files, uint8 arrays (height, width, 3) or
            tensors (C, S, S) or (B, C, S, S). Labels are ignored. About 2,048 images are a good number.
        params: the share of the vision tower's parameters to keep, for example 0.6.
        flops: the share of its FLOPs to keep.
        throughput: the speed-up to reach, in images per second against the dense model, measured on this device.
        latency: the share of the dense model's time for one image to reach, measured on this device.
        held_out: images on which the report, and the search if there is one, measure entropies; None: a part of
            `images`.
        settings: the settings of the YAML, as a group (`prune={"compensation": "none"}`) or by the key alone
            (`criterion="entropy"`); docs/settings.md lists them. `model={"name", "kwargs", "transform"}` tells how the
            model was built, if the object itself does not tell.

    Returns:
        the pruned model, its report and its transform.

    Raises:
        UserError: the model cannot be pruned, it does not take these images, or a setting is not allowed.
    """
    sizes = {"params": params, "flops": flops, "throughput": throughput, "latency": latency}
    asked = Asked.of(images, {**settings, **{key: size for key, size in sizes.items() if size is not None}})
    dense = unwrapped(object_of(model))
    with computing(), alone(device_of(dense)):
        tower = wrap_tower(working_copy(dense), asked.model)
        if tower.base["model_config"] is None:
            say(f"note: it is unknown how this {tower.base['name']} was built, so amp.save cannot write it; {HOW}")
        with arguments_named():
            own = open_images(images, held_out, tower, asked)
        config = own.config
        if reads_images(config.score) and (note := few(len(own.scored) * config.data.batch_size)):
            say(note)
        tower = with_attention(tower, config.attention)
        key = next((key for key, size in sizes.items() if size is not None), "")
        with under(key, instead_of=f"prune.target.{key}"):
            check_possible(tower, [config.prune])
        moments = KeptMoments(len(own.scored)) if config.score.keep_moments else None
        images = own.scored if reads_images(config.score) else []
        scores = score(tower, images, config.score, moments=moments)
        of_heads = score_heads(tower, images, config.score, moments=moments) if tower.heads else []
        return _Work(dense, asked, own, scores, of_heads, moments).sliced(asked, tower)


def compile(model: Any, **options: Any) -> Any:
    """Compiles the transformer blocks of a model, or of the result of `amp.prune`, in place, and returns it.

    Args:
        model: a model of timm, open_clip or transformers, or the result of `amp.prune`.
        options: the options of `amp.export.compile_blocks`.
    """
    compile_blocks(object_of(model), **options)
    return model


def object_of(pruned: Any) -> Any:
    """The model of what `amp.prune` gave; anything else as it is."""
    return pruned.model if isinstance(pruned, PrunedModel) else pruned


@contextmanager
def computing() -> Iterator[None]:
    """Gradients can be taken within the block, wherever it is called."""
    with torch.inference_mode(False), torch.enable_grad():
        yield

"""What a command will do, how long that will take, by one batch of the images on the tower itself, and what comes next.

B images of a batch, C channels, S side in pixels, H hidden neurons, D width of the tower.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.data.pixels import BrokenImageError, read_rgb
from amp.pruning.refit import refits_whole
from amp.run.run import SCORES
from amp.run.world import world
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.prune import PruneConfig
from amp.statistics.moments import MomentCollector, groups, num_sums
from amp.towers import Tower
from amp.towers.library import library

FEW = 512  # images to rank neurons on
TARGETS = {"params": "parameters", "flops": "FLOPs", "throughput": "images a second", "latency": "latency"}
BACKWARD = 3.0  # a forward and a backward pass, of a forward pass
READ = 16  # images, to time the reading
TOGETHER = 4  # blocks that are picked from at once, to time the picks
WHOLE, TOKENS = 1.8, 1024  # forward passes of a refit of the whole, of each view, and tokens of one of its steps
PRODUCTS = 4  # of the covariance with a matrix of the tower's width, in the refit of a block


def estimate_seconds(config: PruneConfig, tower: Tower, batches: Batches) -> float | None:
    """Of ranking by reconstruction, one threshold and a refit. None for settings whose passes are not counted here.

    Args:
        tower: dense, on its device.
        batches: to score on.
    """
    own = config.prune
    if config.score.criterion != "reconstruction" or own.allocation == "search":
        return None
    read = _read_some(batches)
    if read is None:
        return None
    images_BCSS, reading = read[0].to(world().device, tower.dtype), read[1]

    def read_and(computing: float) -> float:
        return max(reading, computing) if config.data.num_workers else reading + computing

    from amp.scoring.criteria.reconstruction import backward_every

    widths = tower.widths
    parts = groups(widths, sums=num_sums(tower.read_tokens))
    with torch.no_grad():
        forward = _seconds(lambda: tower.feature(images_BCSS))
        with MomentCollector([tower.slots[block] for block in parts[0]]) as seen_tokens:
            with_moments = _seconds(lambda: tower.feature(images_BCSS))
        seen = sum(widths[block] ** 2 for block in parts[0]) / sum(width**2 for width in widths)
        moments = max(0.0, with_moments - forward) / seen
        picks, product = _of_a_block(tower)
    every = backward_every(tower, len(batches) * config.data.batch_size)
    first_pass = read_and(BACKWARD * forward) / every + read_and(forward) * (1 - 1 / every)
    of_batch = first_pass + (len(parts) - 1) * read_and(forward) + moments
    of_scoring = len(batches) * of_batch + picks * sum(width**3 for width in widths) / max(widths) ** 3
    of_entropy = 2 * ((config.data.num_val_samples or 0) // config.data.batch_size) * read_and(forward)
    refits = 0.0
    calibration = min(own.num_calibration_samples, len(batches.paths)) // config.data.batch_size
    if refits_whole(own):
        steps = own.refit_steps * TOKENS * BACKWARD / (seen_tokens.num_tokens / 2) * forward
        refits = calibration * (read_and(own.refit_views * WHOLE * forward) + moments) + steps
    elif own.compensation != "none":
        refits = calibration * (len(parts) * read_and(forward) + moments) + PRODUCTS * product * len(widths)
    recovery = own.recover_steps * read_and((1 + BACKWARD) * forward)
    return of_scoring + of_entropy + refits + recovery


def _read_some(batches: Batches) -> tuple[Tensor, float] | None:
    """A batch of this process's size, of the first images, repeated; and the seconds to read a batch.

    None where none of the images can be read, which the scoring tells.
    """
    local = len(range(batches.settings.batch_size)[world().share(batches.settings.batch_size)])
    started, images = time.monotonic(), []
    for source in batches.paths[:READ]:
        with suppress(BrokenImageError):
            images.append(batches.transform(read_rgb(source)))
    if not images:
        return None
    seconds = (time.monotonic() - started) / len(images) * local
    at_once = max(1, min(batches.settings.num_workers, os.cpu_count() or 1))
    repeated_BCSS = torch.stack([images[index % len(images)] for index in range(local)])
    return repeated_BCSS, seconds / at_once


def _of_a_block(tower: Tower) -> tuple[float, float]:
    """Seconds of all picks of the widest block, and of a product with its covariance."""
    from amp.scoring.criteria._picks import POOL, forward_gains

    slot = max(tower.slots, key=lambda slot: slot.hidden_width)
    weight_DH = slot.out_projection.weight.detach().double()
    width, hidden = weight_DH.shape
    device = weight_DH.device
    own, some = min(POOL, hidden), min(TOGETHER, len(tower.slots))
    few_DP, whole_DD = weight_DH[:, :own], torch.eye(width, dtype=torch.float64, device=device)
    # The rows stand for the covariance, of which they are a half.
    half_KH = torch.zeros(max(1, hidden // 2), hidden, dtype=torch.float64, device=device)
    product = 2 * _seconds(lambda: weight_DH @ half_KH.T)
    covariance_PP = few_DP.T @ few_DP
    problem = [own_XX.expand(some, -1, -1).contiguous() for own_XX in (covariance_PP, few_DP, whole_DD)]
    in_pool = _seconds(lambda: forward_gains(problem[0], problem[1], problem[2])) / some / own
    # What a pick takes of its pool, and the products that tell all neurons of the picks: H^3 + 8 H^2 D of 2 H^2 D.
    return in_pool * hidden + (hidden / width / 2 + 4) * product, product


def _seconds(work: Callable[[], object]) -> float:
    """Of the second call: the first one starts threads and compiles kernels."""
    work()
    _wait()
    started = time.monotonic()
    work()
    _wait()
    return time.monotonic() - started


def _wait() -> None:
    if world().device.type == "cuda":
        torch.cuda.synchronize()


def describe_pruning(config: PruneConfig, targets: Sequence[tuple[str, float]] = ()) -> str:
    """What a scoring and a pruning will do; `targets` where there are several."""
    lines = [_title(config), _rank(config), _widths(config, targets), _measure(config)]
    if (count := config.data.num_samples or FEW) < FEW:
        lines.append(f"note: {count} images are few to rank neurons on; {FEW} are better, 2048 are good")
    return "\n".join(line for line in lines if line)


def describe_scoring(config: PruneConfig) -> str:
    """What a scoring alone will do."""
    return "\n".join([_title(config), _rank(config), f"- write one score for each to {config.output.dir}/{SCORES}."])


def describe_slicing(config: PruneConfig) -> str:
    """What a pruning will do with the scores that are there."""
    scores = f"- take the scores of {config.output.dir}/{SCORES} ({config.score.criterion});"
    return "\n".join([_title(config), scores, _widths(config), _measure(config)])


def describe_distillation(config: DistillConfig) -> str:
    """What a distillation will do."""
    own, images, output = config.optim, config.data, config.output
    teacher = _named(config.teacher.as_model("fp32"))
    epochs = f"{own.epochs} epoch{'s' if own.epochs > 1 else ''}"
    return "\n".join(
        [
            f"{config.student.pretrained} learns from {teacher}, images of {images.root}:",
            f"- {epochs} in batches of {images.batch_size}; augment: {images.augment} ({own.precision});",
            f"- write checkpoints every {output.save_every} steps, and distilled/ at the end, to {output.dir}/.",
        ]
    )


def _title(config: PruneConfig) -> str:
    return f"{_named(config.model)}, images of {config.data.root}:"


def _named(model: ModelSettings) -> str:
    weights = model.weights or ("its own weights" if model.frame and library(model.frame).folders else "random weights")
    return f"{model.name} ({model.frame}; {weights})"


def _rank(config: PruneConfig) -> str:
    data = config.data
    images = "all images" if data.num_samples is None else f"{data.num_samples} images"
    return f"- rank the neurons on {images}, in batches of {data.batch_size} ({config.score.criterion});"


def _widths(config: PruneConfig, targets: Sequence[tuple[str, float]] = ()) -> str:
    own = config.prune
    refit = "" if own.compensation == "none" else f"; {own.compensation} refit"
    if asked := targets or (own.target.asked and [own.target.asked]):
        what, values = TARGETS[asked[0][0]], " and ".join(", ".join(f"{value:g}" for _, value in asked).rsplit(", ", 1))
        return f"- prune to {values} of the tower's {what} ({own.allocation} allocation{refit});"
    if own.widths is not None:
        return f"- prune to the widths that the settings give{refit};"
    if own.allocation != "search":
        return ""
    nats = f"{own.entropy_increase:g} nats of entropy"
    return f"- find the least width of each block that adds {nats} at most (search: {own.search}{refit});"


def _measure(config: PruneConfig) -> str:
    count = config.data.num_val_samples
    images = "all held-out images" if count is None else f"{count} held-out images"
    return f"- measure on {images}, and write to {config.output.dir}/."


def in_words(seconds: float) -> str:
    """A time to wait: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def after_pruning(folder: Path, images: str) -> str:
    """What to type after a pruning."""
    efficiency = f"  amp eval efficiency --model {quote(str(folder / 'pruned'))}"
    again = "  another size: the same command with that size; it takes the scores that are there"
    return "\n".join([*_next(folder / "pruned", images), efficiency, again])


def after_distilling(folder: Path, images: str) -> str:
    """Where a distillation's results are, and what to type after it."""
    distilled = folder / "distilled"
    wrote = f"wrote {distilled}; log in {folder / 'log.jsonl'} and TensorBoard in {folder / 'tensorboard'}"
    return "\n".join([wrote, *_next(distilled, images)])


def _next(model: Path, images: str) -> list[str]:
    """Lines that load a model folder and compare it."""
    return [
        "next:",
        f"  python -c 'import amp; model, transform, tokenizer = amp.load_pruned(\"{model}\")'",
        f"  amp eval compare {quote(str(model))} --images {quote(images)}",
    ]

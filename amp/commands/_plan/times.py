"""How long a command will take, judging by one batch of its images on the tower itself.

B images of a batch, C channels, S side in pixels, H hidden neurons, D width of the tower.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from amp.data.batches import Batches
from amp.data.loading import at_work
from amp.data.pixels import read_rgb
from amp.pruning.refit import refits_whole
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.moments import MomentCollector, gigabytes_for_moments, groups, num_sums
from amp.towers import Tower

if TYPE_CHECKING:
    from amp.distillation import Trainer

BACKWARD = 3.0  # a forward and a backward pass, of a forward pass
READ = 16  # images, to time the reading
TOGETHER = 4  # blocks that are picked from at once, to time the picks
WHOLE, TOKENS = 1.8, 1024  # forward passes of a refit of the whole, of each view, and tokens of one of its steps
PRODUCTS = 4  # of the covariance with a matrix of the tower's width, in the refit of a block


def in_words(seconds: float) -> str:
    """A time to wait: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def describe_time(seconds: float | None) -> str:
    """About how long it will take, of an estimate; None: of what cannot be told beforehand."""
    if seconds is None:
        return "no estimate of the total time; each progress bar shows the time left for its own part"
    return f"estimated time, from one batch: about {in_words(seconds)}"


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
        return _both(reading, computing, config.data.num_workers)

    from amp.scoring.criteria.reconstruction import backward_every

    widths = tower.widths
    parts = groups(widths, gigabytes_for_moments(), num_sums(tower.read_tokens))
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
    of_heads = len(batches) / every * read_and(BACKWARD * forward) if tower.heads else 0.0
    recovery = own.recover_steps * read_and((1 + BACKWARD) * forward)
    return of_scoring + of_heads + of_entropy + refits + recovery


def describe_steps(trainer: "Trainer", batches: Batches, done: int) -> str:
    """How many steps of a distillation are left, and about how long they take; nothing is trained."""
    left = trainer.total_steps - done
    step = _step_seconds(trainer, batches) if left else 0.0
    return f"{left} steps; {describe_time(None if step is None else left * step)}"


def _step_seconds(trainer: "Trainer", batches: Batches) -> float | None:
    """By forward passes of the teacher and the student. None where no image can be read."""
    read = _read_some(batches)
    if read is None:
        return None
    images_BCSS, reading = read[0].chunk(trainer.optim.accumulate)[0].to(world().device), read[1]
    with torch.no_grad():
        targets_BTD = trainer.target(images_BCSS)
        teacher = _seconds(lambda: trainer.target(images_BCSS))
        student = _seconds(lambda: trainer.losses(images_BCSS, targets_BTD))
    computing = trainer.optim.accumulate * (teacher + BACKWARD * student)
    return _both(reading, computing, batches.settings.num_workers)


def estimate_features(tower: Tower, images: Sequence[Sequence[Any]], batch_size: int, num_workers: int) -> float | None:
    """Of reading images and taking each through the tower. None where they cannot be counted, or none can be read.

    Args:
        images: data sets whose items begin with an image (C, S, S).
        batch_size, num_workers: of one process.
    """
    if not images or any(isinstance(own, IterableDataset) for own in images):
        return None
    largest, count = max(images, key=len), sum(map(len, images))
    places = range(0, len(largest), max(1, len(largest) // READ))[:READ]
    read = _read(places, lambda place: largest[place][0], num_workers)
    if read is None:
        return None
    found, reading = read
    # A CPU takes as long for each image of a few as for each of many.
    size = batch_size if world().device.type == "cuda" else min(batch_size, len(found))
    images_BCSS = _repeated(found, size).to(world().device, tower.dtype)
    with torch.no_grad():
        computing = _seconds(lambda: tower.feature(images_BCSS)) / size
    return count / world().size * _both(reading, computing, num_workers)


def _read_some(batches: Batches) -> tuple[Tensor, float] | None:
    """A batch of this process's size, of the first images, repeated; and the seconds to read a batch.

    None where none of the images can be read, which the scoring tells.
    """
    local = len(range(batches.settings.batch_size)[world().share(batches.settings.batch_size)])
    with torch.random.fork_rng(devices=[]):  # a distillation's transforms draw numbers
        found = _read(
            batches.paths[:READ], lambda source: batches.transform(read_rgb(source)), batches.settings.num_workers
        )
    return found and (_repeated(found[0], local), found[1] * local)


def _read(sources: Sequence[Any], read: Callable[[Any], Tensor], num_workers: int) -> tuple[list[Tensor], float] | None:
    """The images that can be read, and the seconds of one where so many workers read; None where there are none."""
    started, images = time.monotonic(), []
    for source in sources:
        with suppress(OSError, SyntaxError, ValueError):
            images.append(read(source))
    if not images:
        return None
    return images, (time.monotonic() - started) / len(images) / max(1, at_work(num_workers))


def _both(reading: float, computing: float, num_workers: int) -> float:
    """Seconds of what is read and computed: workers read meanwhile."""
    return max(reading, computing) if num_workers else reading + computing


def _repeated(images: Sequence[Tensor], count: int) -> Tensor:
    return torch.stack([images[index % len(images)] for index in range(count)])


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

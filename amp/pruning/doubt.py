"""What is to be doubted of widths, as warnings: too few held-out batches decided, or hardware dislikes them."""

import math
from collections.abc import Sequence

from amp.pruning.blocks import WidthsFound
from amp.run.console import warn_here
from amp.run.world import world
from amp.settings.prune import ALIGNED, FINEST, PruneDataSettings, SearchSettings

FEW_BATCHES = 8  # of fewer, the spread between batches itself is known to a quarter at best
NARROW = 0.1  # of a block's neurons


def warn_of_few(num_batches: int, data: PruneDataSettings) -> None:
    """Before a search: that there are few batches to decide on."""
    if num_batches < FEW_BATCHES and world().is_main:
        warn_here(
            f"data.num_val_samples: only {num_batches} held-out batches of {data.batch_size} images decide the widths; "
            f"raise it, or add images, to have {FEW_BATCHES * data.batch_size} held-out images or more"
        )


def warn_of_doubt(found: WidthsFound, dense_widths: list[int], num_batches: int, data: PruneDataSettings) -> None:
    """After a search: blocks whose entropy would move by more than the threshold with other images, and collapsed ones.

    The threshold bounds the mean, over batches, of what a block adds; its standard error is that of the paired
    differences. Where it is larger than the threshold, the images that happened to be taken decided.
    """
    threshold = found.entropy_increase
    errors = [error for error in found.standard_errors if error is not None]
    unsure = [error for error in errors if error > threshold > 0]
    shares = [width / dense for width, dense in zip(found.widths, dense_widths, strict=True)]
    block = shares.index(min(shares))
    collapsed = shares[block] < NARROW and num_batches < FEW_BATCHES
    if not (unsure or collapsed) or not world().is_main:
        return
    says = []
    if unsure:
        wanted = math.ceil(num_batches * (max(unsure) / threshold) ** 2)
        says.append(
            f"for {len(unsure)} of {len(errors)} pruned blocks, the measured increase of entropy is uncertain by up to "
            f"{max(unsure):.2g} nats (standard error over {num_batches} batches), more than prune.entropy_increase "
            f"({threshold:.3g}); about {max(wanted, FEW_BATCHES) * data.batch_size} held-out images are needed"
        )
    if shares[block] < NARROW:
        says.append(f"block {block} keeps only {found.widths[block]} of {dense_widths[block]} neurons")
    warn_here(f"data.num_val_samples: {'; '.join(says)}; search again with more images before you trust these widths")


def warn_of_grid(widths: Sequence[int], dense_widths: Sequence[int], settings: SearchSettings) -> None:
    """After a search on the published grid: that a GPU is slow at widths that are no multiples of 8."""
    odd = [width for width, dense in zip(widths, dense_widths, strict=True) if width < dense and width % ALIGNED]
    if odd and settings.width_multiple is None and max(dense_widths) >= FINEST * ALIGNED and world().is_main:
        warn_here(
            f"prune.width_multiple: widths of the published grid, such as {odd[0]}, are not multiples of {ALIGNED} and "
            "run slowly on GPUs: an H200 ran an MLP of 2724 neurons at 0.36 of the speed that its FLOPs promise, one "
            "of 2728 at 1.01; an H100 ran a pruned ViT-g at 0.73 times the dense speed instead of 1.33 "
            f"(docs/widths.md); set prune.width_multiple: {ALIGNED}"
        )

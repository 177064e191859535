"""The images of a split, whatever their layout on disk."""

from collections.abc import Sequence

from amp.data.identity import data_digests
from amp.data.layouts import SPLITS, Source, Split, Undivided
from amp.errors import UserError
from amp.registry import LAYOUTS
from amp.run.processes.environment import is_one_of_several
from amp.settings.data import SMALLEST_BATCH, DataSettings

SCORED, HELD_OUT = "for scoring", "held out"  # what is said of the images of a pruning
FEW = 512  # images to rank neurons on
HELD_OUT_EVERY = 4


class Listing:
    """The images of a dataset on disk: each split is listed, and its files asked for, when it is first needed, and then
    no more. A command has one, so that what it checks, records and reads are the same files.

    Args:
        settings: `name`, `root` and `compare_times` of them; batches may be of other settings.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._images: dict[Split, Sequence[Source]] = {}
        self._digests: dict[Split, tuple[str, str]] = {}

    def images(self, split: Split) -> Sequence[Source]:
        """Of a split in a fixed order: files, or the members of shards.

        Raises:
            UserError: the folder is missing or holds no image file.
        """
        if split not in self._images:
            root = self._settings.root
            found = LAYOUTS.load(self._settings.name).images(root, split)
            self._images |= _divided(found, root) if isinstance(found, Undivided) else {split: found}
        return self._images[split]

    def digests(self, *splits: Split) -> dict[str, str]:
        """`{train_sha256, train_names_sha256, ...}`: what a run's identity holds of the images of some splits.

        Without `data.compare_times` that of the names and sizes alone.

        Raises:
            UserError: a split holds no image, or cannot be read.
        """
        found = {}
        for split in splits:
            if split not in self._digests:
                self._digests[split] = data_digests(self.images(split), self._settings.root)
            names, with_times = self._digests[split]
            found[f"{split}_names_sha256"] = names
            if self._settings.compare_times:
                found[f"{split}_sha256"] = with_times
        return found

    def check_fills_batch(self, split: Split, batch_size: int) -> None:
        """Raises UserError unless the split holds a batch of images."""
        count = len(self.images(split))
        if count < batch_size:
            need = ", which the search needs" if split == "val" else ""
            raise too_few(batch_size, count, f"of the split {split!r} of {self._settings.root}{need}")

    def check(self, batch_size: int, filled: Sequence[Split], found: Sequence[Split] = ()) -> None:
        """What is wrong with the images of a run, before torch is imported. Where it is one of several processes, they
        meet first, and the main one looks for all of them.

        Args:
            filled: splits that must hold a batch.
            found: splits that must hold an image.
        Raises:
            UserError: one does not.
        """
        if is_one_of_several():
            return
        for split in filled:
            self.check_fills_batch(split, batch_size)
        for split in found:
            self.images(split)


def list_images(settings: DataSettings, split: Split) -> Sequence[Source]:
    """The images of a split as they are now, as of `Listing.images`."""
    return Listing(settings).images(split)


def _divided(images: Sequence[Source], root: str) -> dict[Split, Sequence[Source]]:
    """Of images without a split: every fourth one is held out as `val`. Raises UserError for fewer than four."""
    if len(images) < HELD_OUT_EVERY:
        raise UserError(
            "data.root",
            f"{root}: {len(images)} images; at least {HELD_OUT_EVERY} are needed, because one in {HELD_OUT_EVERY} "
            "is held out",
        )
    held_out = set(images[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    return {split: [image for image in images if (image in held_out) == (split == "val")] for split in SPLITS}


def few(count: int | None) -> str:
    """What is said of fewer images than rank neurons well; nothing of enough, or of all that there are (None)."""
    if count is None or count >= FEW:
        return ""
    return f"note: {count} images are few for ranking neurons; use at least {FEW}, better 2048"


def too_few(batch_size: int, count: int, which: str) -> UserError:
    """That `count` images, which ones in words, do not make a batch."""
    if batch_size == SMALLEST_BATCH:
        return UserError("data.root", f"{count} image{'s' * (count != 1)} {which}; at least {batch_size} are needed")
    return UserError("data.batch_size", f"{batch_size} is more than the {count} images {which}")

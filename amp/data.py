"""Images without labels: folders in the layouts of COCO, ImageNet and the digit scenes, in a fixed global order.

B images, C channels, S side in pixels.
"""

import io
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from amp.config import DataSettings
from amp.distributed import World
from amp.errors import UserError
from amp.runs import say, warn_here
from amp.scenes import build_scenes
from amp.shards import Member, find_shards, list_members, shuffle_nearby

Split = Literal["train", "val"]
Transform = Callable[[Any], Tensor]
Source = Path | Member

EXTENSIONS = frozenset(Image.registered_extensions())
FOLDERS = {"coco": {"train": "train2017", "val": "val2017"}}
HELD_OUT_EVERY = 4


def list_images(settings: DataSettings, split: Split) -> Sequence[Source]:
    """Images of a split: sorted files, or the members of shards.

    coco: `root/train2017`, `root/val2017`; imagenet1k, imagefolder, digit_scenes: `root/train`, `root/val`, at any
    depth. webdataset: .tar shards in such folders, or of a pattern. An imagefolder or webdataset with neither is
    split: every fourth image, sorted, is held out. Missing digit scenes are built first.
    Raises:
        UserError: the folder is missing or holds no image file.
    """
    root = Path(settings.root)
    if settings.name == "digit_scenes":
        if not root.is_dir():
            say(f"building the digit scenes in {root}")
        build_scenes(root)
    names = FOLDERS.get(settings.name, {"train": "train", "val": "val"})
    may_be_one = settings.name in ("imagefolder", "webdataset")
    if not root.is_dir() and settings.name != "webdataset":
        raise UserError(f"data.root: {root}: no such folder")
    one_folder = may_be_one and not any((root / name).is_dir() for name in names.values())
    folder = root if one_folder else root / names[split]
    if not folder.is_dir() and not one_folder:
        raise UserError(f"data.root: {root}: has no folder {names[split]!r}, which {settings.name} needs")
    paths: Sequence[Source]
    if settings.name == "webdataset":
        paths = list_members(find_shards(str(folder)), EXTENSIONS)
    else:
        paths = sorted(p for p in _files(folder) if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not paths:
        raise UserError(f"data.root: {folder}: holds no image file")
    if one_folder and len(paths) < HELD_OUT_EVERY:
        raise UserError(f"data.root: {root}: {len(paths)} images; to hold out one in {HELD_OUT_EVERY} takes more")
    if not one_folder:
        return paths
    held_out = set(paths[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    return [p for p in paths if (p in held_out) == (split == "val")]


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth; linked folders too, each folder once, lest links in a circle never end."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in files)


def augmentation(
    recipe: Literal["clip", "dinov2"],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> Transform:
    """The paper's augmentation for distillation: PIL image -> (C, S, S) fp32.

    clip: random resized crop of 0.2-1 of the area, and flip. dinov2: crop of 0.05-1, flip, colour jitter
    (0.4, 0.4, 0.2, 0.1) at 0.8, greyscale at 0.2, Gaussian blur, solarise at 0.2. The paper gives the blur no
    probability; 0.1 is DINOv2's own for its view that solarises.
    """
    mode = InterpolationMode(interpolation)
    crop: list[Any] = [
        v2.RandomResizedCrop(image_size, scale=(0.2 if recipe == "clip" else 0.05, 1.0), interpolation=mode),
        v2.RandomHorizontalFlip(),
    ]
    colour: list[Any] = [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=0.1),
        v2.RandomSolarize(threshold=128, p=0.2),
    ]
    finish: list[Any] = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    ]
    return v2.Compose([*crop, *(colour if recipe == "dinov2" else []), *finish])


class _Images(Dataset[tuple[Tensor, list[tuple[str, str]]]]):
    """(epoch, index) -> the transformed image, and the broken files met on the way to it.

    The next readable file in listing order stands in for a broken one, so that batches keep their size and do not
    depend on the number of processes. Random transforms are seeded by (seed, epoch, index) alone.
    """

    def __init__(self, paths: Sequence[Source], transform: Transform, seed: int) -> None:
        self.paths = paths
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, list[tuple[str, str]]]:
        epoch, index = key
        broken: list[tuple[str, str]] = []
        for step in range(len(self.paths)):
            source = self.paths[(index + step) % len(self.paths)]
            path = str(source)
            try:
                with Image.open(io.BytesIO(source.read()) if isinstance(source, Member) else path) as file:
                    image = file.convert("RGB")
            except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                broken.append((path, str(error).splitlines()[0].replace(path, "").strip(" '")))
                continue
            with torch.random.fork_rng(devices=[]):
                mixed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
                torch.default_generator.manual_seed(int(mixed[0] >> np.uint64(1)))
                return self.transform(image), broken
        return torch.empty(0), broken


def outlive_signals(worker: int) -> None:
    """A queue signals every process of a job; workers end when the process that reads them does."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _collate(
    items: list[tuple[Tensor, list[tuple[str, str]]]],
) -> tuple[Tensor | None, list[tuple[str, str]]]:
    broken = [b for _, found in items for b in found]
    images = [image for image, _ in items]
    return (None if any(i.numel() == 0 for i in images) else torch.stack(images)), broken


@dataclass
class Batches:
    """This process's contiguous share of every global batch; the incomplete last batch is dropped.

    Attributes:
        broken: files that could not be read and were skipped, by this process.
    """

    paths: Sequence[Source]
    transform: Transform
    settings: DataSettings
    world: World
    num_samples: int | None = None
    broken: dict[str, str] = field(default_factory=dict)
    _num_read: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._share = self.world.share(self.settings.batch_size)
        if len(self) == 0:
            raise UserError(
                f"data.batch_size: {self.settings.batch_size} is more than the {len(self.order(0))} images "
                f"of this split of {self.settings.root}"
            )

    def order(self, epoch: int) -> list[int]:
        """Indices of `paths` in the global order of an epoch."""
        if self.settings.shuffle:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            members = [source for source in self.paths if isinstance(source, Member)]
            indices = (
                shuffle_nearby(members, generator)
                if members
                else torch.randperm(len(self.paths), generator=generator).tolist()
            )
        else:
            indices = list(range(len(self.paths)))
        return indices[: self.num_samples]

    def files(self, epoch: int, batch: int) -> list[Source]:
        """Of a global batch of an epoch, in order."""
        return [self.paths[index] for index in self._cut(self.order(epoch), batch)]

    def _cut(self, order: list[int], batch: int) -> list[int]:
        return order[batch * self.settings.batch_size : (batch + 1) * self.settings.batch_size]

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return min(self.num_samples or len(self.paths), len(self.paths)) // self.settings.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Local images (B / processes, C, S, S) fp32 of the epoch's batches, from batch `start` on."""
        order = self.order(epoch)
        keys = [[(epoch, i) for i in self._cut(order, b)[self._share]] for b in range(start, len(self))]
        loader: DataLoader[Any] = DataLoader(
            _Images(self.paths, self.transform, self.settings.seed),
            batch_sampler=keys,
            generator=torch.Generator(),  # its own, since the loader draws a seed from the global one
            num_workers=min(self.settings.num_workers, os.cpu_count() or 1),
            collate_fn=_collate,
            pin_memory=self.world.device.type == "cuda",
            worker_init_fn=outlive_signals,
        )
        for images, broken in loader:
            self._num_read += self._share.stop - self._share.start
            self._note(broken)
            if images is None:
                raise UserError(f"data.root: {self.settings.root}: holds no readable image")
            if broken:
                self._check_share(*broken[-1])
            yield images

    def _note(self, broken: list[tuple[str, str]]) -> None:
        for path, reason in broken:
            if self.settings.strict:
                raise UserError(f"data.strict: {path}: broken image ({reason})", rank_local=True)
            if path not in self.broken:
                self.broken[path] = reason
                warn_here(f"skipped broken image {path} ({reason})")

    def _check_share(self, last: str, reason: str) -> None:
        # Of the images that this process has read, or will have read in an epoch.
        seen = min(len(self.paths), max(self._num_read, len(self.paths) // self.world.size))
        if len(self.broken) > math.ceil(self.settings.max_broken * seen):
            raise UserError(
                f"data.max_broken: {len(self.broken)} broken of {seen} images, the last {last} ({reason}); "
                f"more than the share of {self.settings.max_broken:g} that is allowed",
                rank_local=True,
            )

    def say_broken(self) -> None:
        """One line with the number of skipped files over all processes, if any."""
        found = set().union(*self.world.gather_objects(set(self.broken)))
        if found:
            say(f"{len(found)} of {len(self.paths)} image files were broken and skipped, the next readable ones taken")

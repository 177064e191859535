"""Tensors that a search or a refit keeps: on the device, in host memory or in files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amp.errors import StoppedError, UserError

Place = Literal["auto", "device", "host", "disk"]
LEFT_FREE = 0.4  # of a GPU's memory, which `auto` leaves to the work itself


class InputStore:
    """Tensors by (block, batch), on the device, in host memory or in files; `auto`: on a GPU while it has room, then in
    host memory.

    Args:
        folder: of the files, its own.
        promised: bytes of the device that others will take later, and `auto` leaves to them.
    """

    def __init__(self, place: Place, device: torch.device, folder: Path | None = None, promised: int = 0) -> None:
        self._place, self._device, self._folder, self._promised = place, device, folder, promised
        self._held: dict[tuple[int, int], Tensor | Path] = {}
        self.clear()

    def beside(self) -> "InputStore":
        """Another one, in the same place."""
        folder = self._folder and self._folder.with_name(f"{self._folder.name}.beside")
        return InputStore(self._place, self._device, folder, self._promised)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._held

    def put(self, key: tuple[int, int], tensor: Tensor) -> None:
        """Raises UserError when the device is full, StoppedError when the disk is."""
        if self._place == "disk":
            self._held[key] = self._write(key, tensor)
            return
        if self._place == "host" or (
            self._place == "auto" and not _has_room(self._device, tensor.nbytes + self._promised)
        ):
            self._held[key] = _on_host(tensor)
            return
        try:
            self._held[key] = tensor.to(self._device)
        except torch.OutOfMemoryError:
            raise UserError(
                "prune.store",
                "device: the inputs of the blocks do not fit in its memory; choose auto, host or disk, "
                "or a larger prune.store_every",
            ) from None

    def _write(self, key: tuple[int, int], tensor: Tensor) -> Path:
        assert self._folder is not None
        path = self._folder / f"{key[0]}-{key[1]}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({"input": tensor.cpu().contiguous()}, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise StoppedError(
                f"prune.store: disk: {self._folder} cannot be written ({reason}); free disk space or set "
                "prune.store: host, then run the same command to continue after the last measurement",
                rank_local=True,
            ) from None
        return path

    def get(self, key: tuple[int, int]) -> Tensor:
        """On the device."""
        held = self._held[key]
        tensor = load_file(held)["input"] if isinstance(held, Path) else held
        return tensor.to(self._device, non_blocking=True)

    def clear(self) -> None:
        """Forgets everything; also what a killed run left in the folder."""
        self._held.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def drop(self, useless: Callable[[int], bool]) -> None:
        """Forgets the inputs of the blocks that are `useless`."""
        for key in [key for key in self._held if useless(key[0])]:
            held = self._held.pop(key)
            if isinstance(held, Path):
                held.unlink()


def room_for_inputs(total: float, taken: float) -> float:
    """Bytes of a GPU of `total` bytes that `auto` may fill, where `taken` ones are in use or promised to others."""
    return max(0.0, (1 - LEFT_FREE) * total - taken)


def _has_room(device: torch.device, num_bytes: int) -> bool:
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return num_bytes <= room_for_inputs(total, total - free - reusable)


def _on_host(tensor: Tensor) -> Tensor:
    """A GPU copies to pinned memory beside what the process does, and reads from there in the order of its work."""
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
    return pinned.copy_(tensor, non_blocking=True)

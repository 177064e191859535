"""Tensors that a search keeps: on the device, in host memory or in files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amp.errors import StoppedError, UserError

Place = Literal["device", "host", "disk"]


class InputStore:
    """Tensors by (block, batch), on the device, in host memory or in files.

    Args:
        folder: of the files, its own.
    """

    def __init__(self, place: Place, device: torch.device, folder: Path | None = None) -> None:
        self._place, self._device, self._folder = place, device, folder
        self._held: dict[tuple[int, int], Tensor | Path] = {}
        self.clear()

    def beside(self) -> "InputStore":
        """Another one, in the same place."""
        return InputStore(
            self._place, self._device, self._folder and self._folder.with_name(f"{self._folder.name}.beside")
        )

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._held

    def put(self, key: tuple[int, int], tensor: Tensor) -> None:
        """Raises UserError when the device is full, StoppedError when the disk is."""
        if self._place == "disk":
            self._held[key] = self._write(key, tensor)
            return
        try:
            self._held[key] = tensor.to(self._device if self._place == "device" else "cpu")
        except torch.OutOfMemoryError:
            raise UserError(
                "prune.store",
                "device: the blocks' inputs do not fit its memory; choose host or disk, or a larger prune.store_every",
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
                f"prune.store: disk: {self._folder} cannot be written ({reason}); make room or set prune.store: host, "
                "then the same command goes on after the last measurement",
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

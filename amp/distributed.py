"""The only file that knows torch.distributed. On one process every operation is the identity."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from amp.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a run and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, batch_size: int, key: str = "data.batch_size") -> slice:
        """This process's contiguous part of a global batch. Raises UserError when it does not divide."""
        if batch_size % self.size:
            raise UserError(f"{key}: {batch_size} is not divisible by the {self.size} processes")
        local = batch_size // self.size
        return slice(self.rank * local, (self.rank + 1) * local)

    def gather(self, local_B: Tensor) -> Tensor:
        """Rows of all processes in rank order; (B, ...) equal on every process -> (size * B, ...).

        Differentiable in this process's own rows: when every process computes the same scalar of the
        gathered rows, the local gradient is that of the one global scalar, with no further reduction.
        """
        if self.size == 1:
            return local_B
        parts = [torch.empty_like(local_B) for _ in range(self.size)]
        dist.all_gather(parts, local_B.detach().contiguous())
        parts[self.rank] = local_B
        return torch.cat(parts)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, the same bits on each."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Any) -> Any:
        """The main process's picklable value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_main(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on the main process, or the UserError it raises there, on every process."""
        outcome: Any = None
        if self.is_main:
            try:
                outcome = function()
            except UserError as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def gather_objects(self, value: Any) -> list[Any]:
        """Picklable values of all processes in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the processes; itself on one process."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def start(device: str | None = None) -> Iterator[World]:
    """The world of a script run by python (one process) or torchrun (many): CUDA with NCCL or CPU with gloo.

    Args:
        device: 'cpu' or 'cuda'; None takes CUDA when there is one.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" not in os.environ:
        yield World(0, 1, torch.device(kind, 0) if kind == "cuda" else torch.device(kind))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"--nproc_per_node: process {local_rank} has no GPU of {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
        own = torch.device("cuda", local_rank)
    else:
        own = torch.device("cpu")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        timeout=timedelta(hours=1),
        device_id=own if kind == "cuda" else None,
    )
    try:
        yield World(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()

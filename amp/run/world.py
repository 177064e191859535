"""The processes of a run. On one process every operation is the identity."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from amp.errors import StoppedError, UserError, as_line
from amp.run.processes.environment import Place, place_of
from amp.run.processes.together import SECONDS, Ends, Process, broke_off, join
from amp.settings.distill import Parallel

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

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor on this process's device. A GPU copies it from pinned memory beside the work that it still has."""
        if self.device.type != "cuda" or tensor.is_cuda:
            return tensor.to(self.device)
        own, beside = torch.cuda.current_stream(self.device), _stream_for_copies(self.device)
        with torch.cuda.stream(beside):
            taken = tensor.to(self.device, non_blocking=True)
        own.wait_stream(beside)
        taken.record_stream(own)
        return taken

    def share(self, batch_size: int, key: str = "data.batch_size") -> slice:
        """This process's contiguous part of a global batch. Raises UserError when it does not divide."""
        if batch_size % self.size:
            raise UserError(key, f"{batch_size} is not divisible by the {self.size} processes")
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
        """What `function` returns on the main process, or what a user can mend of its errors, on every one."""
        outcome: Any = None
        if self.is_main:
            try:
                outcome = function()
            except Exception as error:
                outcome = as_line(error)
                if outcome is None:
                    raise
                outcome.rank_local = False
        outcome = self.broadcast(outcome)
        if isinstance(outcome, (UserError, StoppedError)):
            raise outcome
        return outcome

    def gather_objects(self, value: Any) -> list[Any]:
        """Picklable values of all processes in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: Any) -> list[Any]:
        """Picklable values of all processes in rank order, on the main process; [] elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_main else []
        dist.gather_object(value, values if self.is_main else None, dst=0)
        return values

    def in_bf16(self) -> torch.autocast:
        """Within it, a GPU that has instructions for it multiplies in bf16; a CPU gains nothing by it."""
        fast = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def data_parallel(
        self, module: nn.Module, kind: Parallel, blocks: Collection[nn.Module], compute: torch.dtype | None = None
    ) -> nn.Module:
        """`module` with its gradients averaged over the processes; itself on one process.

        Args:
            kind: ddp keeps a replica on every process; fsdp keeps a shard of every parameter, gathered block by block
                where it is needed (FSDP2, `torch.distributed.fsdp.fully_shard`).
            blocks: submodules of `module`.
            compute: dtype that shards are gathered in; None keeps theirs. Gradients are averaged in fp32.
        """
        if self.size == 1:
            return module.to(self.device)
        if kind == "fsdp":
            policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
            shard = partial(fully_shard, mesh=init_device_mesh(self.device.type, (self.size,)), mp_policy=policy)
            for block in blocks:
                shard(block)
            shard(module)
            return module
        module.to(self.device)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


_started: list[World] = []
_within: ContextVar[World | None] = ContextVar("world", default=None)


def world() -> World:
    """The processes of this run and the device of this one; one process on its default device outside of `start`."""
    return _within.get() or (_started[-1] if _started else World(0, 1, _default_device()))


@contextmanager
def among(other: World) -> Iterator[World]:
    """Within the block, and in this thread, `world()` is the one given: for work that one of several processes does
    alone."""
    token = _within.set(other)
    try:
        yield other
    finally:
        _within.reset(token)


@cache
def _stream_for_copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _default_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def gpu_gigabytes() -> float | None:
    """Memory of this process's GPU; None on a CPU."""
    device = world().device
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None


def gradients_stay_local(module: nn.Module) -> AbstractContextManager[None]:
    """Around the micro-batches of a step but the last: replicas average the sum of them once."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def local_part(tensor: Tensor) -> Tensor:
    """This process's shard of a parameter or gradient, sharing its memory; the tensor itself where it is whole."""
    sharded = tensor.detach()
    return sharded.to_local() if isinstance(sharded, DTensor) else tensor


def sharded_like(local: Tensor, whole: Tensor) -> Tensor:
    """The tensor whose shard on this process is `local`, sharded as `whole` is."""
    if not isinstance(whole, DTensor):
        return local
    return DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def recompute_in_backward(module: nn.Module, blocks: Collection[nn.Module]) -> None:
    """Wraps submodules so that they keep their inputs alone for the backward pass; names in state dicts stay."""
    chosen = set(blocks)
    # No module of ours draws random numbers: towers are in eval mode.
    wrapper = partial(checkpoint_wrapper, preserve_rng_state=False)
    apply_activation_checkpointing(module, checkpoint_wrapper_fn=wrapper, check_fn=lambda m: m in chosen)


@contextmanager
def start(device: str | None = None) -> Iterator[World]:
    """The world of a script run by python (one process) or torchrun (many): CUDA with NCCL or CPU with gloo.

    Within another one it is that one. When a process ends before its work is done, the others end with it and say why.

    Args:
        device: 'cpu' or 'cuda'; None takes CUDA when there is one.
    Raises:
        UserError: the launcher's environment is not as it should be, or not all processes come.
    """
    if _started or _within.get():
        yield world()
        return
    kind = device or _default_device().type
    place = place_of()
    if place is None:
        with _as_started(World(0, 1, torch.device(kind, 0) if kind == "cuda" else torch.device(kind))) as alone:
            yield alone
        return
    own = World(place.rank, place.size, _own_device(kind, place))
    store = join(place, own.device)
    try:
        ends = Ends(store, own.rank, own.gather_objects(Process.own()))
        with _as_started(own):
            yield own
    except BaseException as error:
        lost = broke_off(error)
        if not lost:
            ends.tell(error)
            dist.destroy_process_group()
            raise
        stop = ends.explain()
        dist.destroy_process_group()
        if own.is_main:
            time.sleep(SECONDS)  # The others read in the store, which may end with this process.
        raise stop from None
    dist.destroy_process_group()


@contextmanager
def alone(device: torch.device) -> Iterator[World]:
    """The world of a call on a model in memory: this process alone. Raises UserError where it is one of several."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError(
            "torch.distributed",
            "models in memory are pruned by a single process; for several processes use main_prune.py",
        )
    with _as_started(World(0, 1, device)) as one:
        yield one


def _own_device(kind: str, place: Place) -> torch.device:
    """Of this process, which gets its part of the machine's cores where there is no GPU."""
    if kind != "cuda":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_size))
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(
            "--nproc_per_node", f"process {place.local_rank} has no GPU: this machine has {count}", rank_local=True
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


@contextmanager
def _as_started(own: World) -> Iterator[World]:
    _started.append(own)
    try:
        yield own
    finally:
        _started.pop()

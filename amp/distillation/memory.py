"""What a distillation needs in a GPU's memory, counted on meta tensors, before anything is downloaded or started.

b images of a micro-batch on one GPU, W GPUs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amp.distillation.placement import num_recomputed
from amp.errors import UserError
from amp.models.folder import read_folder_config
from amp.models.memory import GB, describe_memory, tensor_bytes, with_total
from amp.models.published import published_widths
from amp.models.sizes import count_params
from amp.run.files import PRUNE_RECORD, is_described
from amp.run.sealed import read_json
from amp.settings.distill import DistillConfig, OptimSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower, with_heads


def plan_memory(config: DistillConfig, num_gpus: int) -> dict[str, float]:
    """Bytes on each of `num_gpus` GPUs, by what they hold; `total` is the most at once, at most their sum.

    Activations are those of attention that keeps no (T, T) matrix; what the allocator and the libraries take besides
    is not counted.
    Raises:
        UserError: the batch does not divide, the model is unknown.
    """
    batch, accumulate = config.data.batch_size, config.optim.accumulate
    if num_gpus < 1 or batch % (num_gpus * accumulate):
        raise UserError(
            "--num_gpus", f"data.batch_size {batch} is not divisible by {num_gpus} GPUs x optim.accumulate {accumulate}"
        )
    images = batch // num_gpus // accumulate
    low = config.optim.precision != "fp32"
    element = 2 if config.optim.precision == "pure_bf16" else 4
    sharded = config.optim.parallel == "fsdp" and num_gpus > 1
    shards = num_gpus if sharded else 1

    teacher = build_tower(config.teacher.as_model("bf16" if low else "fp32"), "meta")
    student = _student(config)
    head = after_last_block(build_tower(config.teacher.as_model("fp32"), "meta"))
    num_student = count_params(student)
    trained = [p.numel() for n, p in student.visual.named_parameters() if n not in head]
    student.visual.to(torch.bfloat16 if low else torch.float32)
    by_block, before, block_input = _saved_bytes(student)
    recomputed = num_recomputed(config.optim, len(by_block))
    kept = [block_input] * recomputed + by_block[recomputed:]
    gradients = max(trained) if config.optim.step_in_backward else sum(trained)
    plan = {
        "teacher weights": tensor_bytes(teacher.visual.parameters()) / shards,
        "student weights": (sum(trained) * element + (num_student - sum(trained)) * 4) / shards,
        "gradients": gradients * element / shards,
        "optimizer": sum(trained) * element * _num_moments(config.optim) / shards,
        "gathered weights": 0.0,
        "activations": float(images * (before + sum(kept) + max(by_block[:recomputed], default=0))),
    }
    own = [sum(p.numel() for p in block.parameters()) for block in student.blocks.values()]
    copies = [0] * len(own)
    if sharded:
        # Two blocks of each tower, the one at work and the next one, and a block's gradients before they are divided.
        plan["gathered weights"] = float(2 * _largest(teacher) + 4 * _largest(student))
    elif config.optim.precision == "bf16":
        # The copies that autocast makes; between micro-batches they stay.
        copies = [0 if number < recomputed and accumulate == 1 else 2 * size for number, size in enumerate(own)]
        plan["gathered weights"] = float(sum(copies) + 2 * (num_student - sum(own)))
    whole = with_total(**plan)
    if num_gpus == 1 and accumulate == 1 and not config.optim.step_in_backward:
        # Gradients come as activations go. Replicas keep room for all of them, and micro-batches the sum.
        at_work = [
            images * (before + sum(kept[: number + 1]) + (by_block[number] if number < recomputed else 0))
            + sum(copies[: number + 1])
            + element * sum(own[number:])
            for number in range(len(own))
        ]
        last = images * before + plan["gradients"]
        apart = plan["activations"] + sum(copies) + plan["gradients"]
        whole["total"] -= apart - max(*at_work, last)
    return whole


def describe_plan(config: DistillConfig, num_gpus: int) -> str:
    """The plan as a table, with what it assumes."""
    plan, optim = plan_memory(config, num_gpus), config.optim
    num_student = count_params(_student(config))
    recomputed = str(optim.activation_checkpointing).lower()
    title = [
        f"{config.teacher.name} -> {config.student.pretrained}, memory on each of {num_gpus} GPUs",
        f"{optim.precision}, {optim.parallel}, activation_checkpointing {recomputed}, micro-batches: "
        f"{optim.accumulate} x {config.data.batch_size // num_gpus // optim.accumulate} images",
        f"student: {num_student:,} parameters, {_source(config)}",
    ]
    parts = sum(size for name, size in plan.items() if name != "total")
    notes = {"total": "at the peak; gradients replace activations"} if plan["total"] < parts else {}
    shards = optim.parallel == "fsdp" and num_gpus > 1
    copied = plan["optimizer"] * (1 + 1 / _num_moments(optim)) / GB
    whose = "each process" if shards else "the first process"
    host = f"and {copied:.2f} GB of host memory of {whose} for the copy of a checkpoint while it is written"
    return "\n".join([describe_memory(title, plan, notes=notes), host])


def _num_moments(optim: OptimSettings) -> int:
    """Tensors of the optimizer for each parameter."""
    return 3 if optim.precision == "pure_bf16" else 2  # and the Kahan compensation


def _widths(config: DistillConfig) -> list[int] | None:
    folder = Path(config.student.pretrained)
    if folder.is_file():
        return published_widths(folder, build_tower(config.teacher.as_model("fp32"), "meta"))
    if is_described(folder):
        return read_folder_config(folder).counts
    record = folder.parent / PRUNE_RECORD
    return list(read_json(record)["widths"]) if record.is_file() else None


def _source(config: DistillConfig) -> str:
    if _widths(config) is None:
        return f"{config.student.pretrained} does not exist yet: assumed as large as the teacher, an upper bound"
    return "as pruned"


def _student(config: DistillConfig) -> Tower:
    tower = build_tower(config.teacher.as_model("fp32"), "meta")
    counts = _widths(config) or tower.widths
    tower = with_heads(tower) if len(counts) > len(tower.slots) else tower
    for slot, count in zip(tower.units, counts, strict=True):
        slot.keep(torch.arange(count))
    return tower


def _largest(tower: Tower) -> int:
    return max(tensor_bytes(block.parameters()) for block in tower.blocks.values())


def _saved_bytes(tower: Tower) -> tuple[list[int], int, int]:
    """Of one image: what autograd keeps in each block, what it keeps before the first, and a block's input alone."""
    size, weight = tower.image_size, next(tower.visual.parameters())
    images_1CSS = torch.empty(1, 3, size, size, dtype=weight.dtype, device="meta")
    with torch.no_grad():
        tokens_1TD = TokenReadout(tower)(images_1CSS)
    num_tokens = tokens_1TD.shape[1]
    weights = {p.untyped_storage()._cdata for p in tower.visual.parameters()}
    seen: dict[int, Tensor] = {}  # By storage, kept so that no other takes its address.
    totals: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        own = tensor.untyped_storage()._cdata
        if own not in weights and tensor.shape[-2:] != (num_tokens, num_tokens):
            seen.setdefault(own, tensor)
        return tensor

    def add_up(*_: Any) -> None:
        totals.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))

    blocks = list(tower.blocks.values())
    hooks = [h for b in blocks for h in (b.register_forward_pre_hook(add_up), b.register_forward_hook(add_up))]
    tower.visual.requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tower.visual(images_1CSS)
    for hook in hooks:
        hook.remove()
    by_block = [after - before for before, after in zip(totals[::2], totals[1::2], strict=True)]
    return by_block, totals[0], tokens_1TD.numel() * tokens_1TD.element_size()

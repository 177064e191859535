"""Model objects: what is wrapped around them, the state that they come in, and what is known of pruned ones."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from amp.errors import UserError
from amp.towers import Tower

WRAPPERS = ("_orig_mod", "module")  # of torch.compile and of DistributedDataParallel
_KNOWN = "_pruned_by_amp"
CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a pruned model.

    Attributes:
        tower: around it.
        kept: of every block, the kept neurons' indices into the dense model; None where they are not known.
        provenance: of the folder that it is saved to.
        record: what was measured, as in `prune.json`; empty where nothing was.
    """

    tower: Tower
    kept: Sequence[Sequence[int]] | None
    provenance: Mapping[str, Any]
    record: Mapping[str, Any]

    def __deepcopy__(self, memo: Any) -> "Known":
        """Of a copy it says the same; `known_of` finds the copy's own modules."""
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


def remember(model: nn.Module, known: Known) -> None:
    """For as long as the model lives, or a copy of it; a pickle of the object does not hold it."""
    vars(model)[_KNOWN] = known


def known_of(model: Any, key: str = "model") -> Known:
    """Of a pruned model, or one that is wrapped. Raises UserError for any other object."""
    own = unwrapped(model) if isinstance(model, nn.Module) else None
    known: Known | None = vars(own).get(_KNOWN) if own is not None else None
    if known is None or own is None:
        raise UserError(
            key, f"{type(model).__name__} is not a result of amp.prune or amp.load_pruned; give one of these"
        )
    return known if known.tower.model is own else replace(known, tower=_around_copy(known.tower, own))


def _around_copy(tower: Tower, model: nn.Module) -> Tower:
    """The tower around a copy of its model, as far as a folder of it needs one."""
    names = {module: name for name, module in tower.model.named_modules()}

    def twin(module: nn.Module) -> Any:
        return model.get_submodule(names[module])

    slots = tuple(
        replace(
            slot,
            in_projections=tuple(map(twin, slot.in_projections)),
            norm=None if slot.norm is None else twin(slot.norm),
            out_projection=twin(slot.out_projection),
            module=twin(slot.module),
        )
        for slot in tower.slots
    )
    heads = tuple(replace(slot, module=twin(slot.module)) for slot in tower.heads)
    return replace(tower, model=model, visual=twin(tower.visual), slots=slots, heads=heads)


def unwrapped(model: nn.Module) -> nn.Module:
    """The library's own model inside torch.compile and DistributedDataParallel.

    Raises:
        UserError: it is shared out over processes, adapted, or quantised.
    """
    if not isinstance(model, nn.Module):
        told = f"is a {type(model).__name__}; give a model object built by open_clip, timm or transformers"
        raise UserError("model", told)
    while inner := next(
        (m for name in WRAPPERS if isinstance(m := vars(model)["_modules"].get(name), nn.Module)), None
    ):
        model = inner
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "peft" or hasattr(module, "lora_A"):
            advice = "merge it first: model = model.merge_and_unload()"
            raise UserError("model", f"{name or type(module).__name__} holds a LoRA adapter; {advice}")
    for name, parameter in model.named_parameters():
        if type(parameter.data).__name__ == "DTensor":
            raise UserError("model", f"{name} is sharded over processes (FSDP); gather the model first")
        if not parameter.is_floating_point():
            raise UserError("model", f"{name} is quantised ({parameter.dtype}); give the model in bf16 or fp32")
        if parameter.is_meta:
            raise UserError("model", f"{name} holds no weights (it is on the meta device); load them first")
    return model


def device_of(model: nn.Module) -> torch.device:
    """Of all its parameters. Raises UserError where they are on several."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise UserError("model", f"is on {len(devices)} devices ({', '.join(map(str, devices))}); move it to one")
    return devices.pop()


def working_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, its parameters frozen, that keeps its activations in the backward pass."""
    own = copy.deepcopy(model).eval().requires_grad_(False)
    for module in own.modules():
        for name in CHECKPOINTING:
            if getattr(module, name, None) is True:
                setattr(module, name, False)
    return own


def restore(own: nn.Module, model: nn.Module) -> None:
    """Gives a working copy the modes of the model that it is of; where all of it was frozen, everything trains."""
    for module, original in zip(own.modules(), model.modules(), strict=True):
        module.training = original.training
        for name in CHECKPOINTING:
            if getattr(original, name, None) is True:
                setattr(module, name, True)
    named = model.named_parameters(remove_duplicate=False)  # of weights that are tied too
    flags = {name: parameter.requires_grad for name, parameter in named}
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(flags[name] or not any(flags.values()))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients within the block, as it was after it."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)

"""Vision towers, one file a library in `frames/`. `build_tower` is the one way to a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amp.errors import UserError
from amp.registry import FRAMES
from amp.settings.model import GivenModelSettings, ModelSettings
from amp.towers.base import Tower, in_order, offline
from amp.towers.copies import duplicate, on_meta
from amp.towers.frames._classifier import Classifier, find_classifier
from amp.towers.given import made_by
from amp.towers.heads.find_slots import with_attention, with_heads
from amp.towers.library import Library, known_weights, library
from amp.towers.mlps.slots import MlpSlot, Slot
from amp.towers.names import default_frame, find_frame, knows, other_reader
from amp.towers.preprocess import describe_preprocess, tell_preprocess
from amp.towers.readout import TokenReadout, after_last_block, check_readout
from amp.towers.weights import check_complete, tell_loading

__all__ = [
    "Classifier",
    "Library",
    "MlpSlot",
    "Slot",
    "TokenReadout",
    "Tower",
    "after_last_block",
    "build_tower",
    "default_frame",
    "describe_preprocess",
    "duplicate",
    "find_classifier",
    "find_frame",
    "in_order",
    "known_weights",
    "knows",
    "library",
    "on_meta",
    "rebuild_dense",
    "tell_preprocess",
    "with_attention",
    "with_heads",
    "wrap_tower",
]


def build_tower(
    settings: ModelSettings, device: str = "cpu", saved: dict[str, Any] | None = None, shapes: Tower | None = None
) -> Tower:
    """Builds a dense model, frozen and in eval mode.

    Args:
        settings: without `frame` that of `default_frame`.
        device: 'cpu', 'cuda' or 'meta' (shapes only, no weights).
        saved: the `base` of an earlier Tower: rebuild that model. Off 'meta' its parameters are empty until a state
            dict is loaded into it.
        shapes: the tower of these settings on the meta device, where it is at hand: what it has proved is not proved
            again, and heads that it can lose can be removed.
    Raises:
        UserError: unknown name, missing weights, weights of another architecture, no prunable MLP, other images than
            square RGB ones, tokens instead of one feature an image.
    """
    with torch.random.fork_rng(devices=[]):
        # Without weights every process and every script must draw the same ones.
        torch.manual_seed(0)
        frame = settings.frame or default_frame(settings.name)
        own = saved is None and shapes is None and device != "meta"
        if own and settings.pretrained and _is_the_users_own(settings):
            # What cannot be built is told from weights that do not fit.
            shapes = build_tower(settings.model_copy(update={"pretrained": None}), "meta")
        if saved is None and device != "meta":
            _tell_loading(settings, library(frame))
        try:
            tower = library(frame).build(settings, device, saved)
        except UserError as error:
            more = other_reader(frame, settings) if error.key == "model.pretrained" else ""
            raise (UserError(error.key, f"{error.text}{more}") if more else error) from None
    if saved is None and device != "meta":
        check_complete(tower.model, str(settings.pretrained))
    tower = replace(tower, read_tokens=shapes.read_tokens) if shapes else check_readout(tower)
    if saved is None and device != "meta":
        tower.model.to(device)
    return with_heads(tower) if shapes and shapes.heads else tower


def wrap_tower(model: nn.Module, asked: GivenModelSettings | None = None) -> Tower:
    """The tower around a model object of open_clip, timm or transformers, which stays what it is.

    Args:
        model: in eval mode, its parameters frozen, on its device.
        asked: what the user says of it.
    Raises:
        UserError: no model of these libraries, or one that cannot be pruned.
    """
    asked = asked or GivenModelSettings()
    frames = [asked.frame] if asked.frame else sorted(FRAMES.names, key=lambda frame: not made_by(model, frame))
    with torch.random.fork_rng(devices=[]):
        for frame in frames:
            wrap = library(frame).wrap
            tower = wrap(model, asked) if wrap else None
            if tower is not None:
                return check_readout(tower)
    whose = f"{type(model).__module__}.{type(model).__name__}"
    raise UserError(
        "model",
        f"{whose} is not a model of open_clip, timm or transformers; give a model object that one of them built",
    )


def _tell_loading(settings: ModelSettings, own: Library) -> None:
    source = settings.weights or (settings.name if own.folders else "")
    told = settings.name if source == settings.name else f"{settings.name} ({source})"
    of_hub = own.folders and not Path(source).exists()
    tell_loading(told, Path(source), fetched=of_hub or source in own.tags(settings.name))


def _is_the_users_own(settings: ModelSettings) -> bool:
    return bool(settings.kwargs) or settings.name.endswith(".json")


def rebuild_dense(base: Mapping[str, Any], device: str = "cpu") -> Tower:
    """The dense model of an earlier Tower's `base`, its parameters empty; it needs neither the model's files nor
    the internet.

    Slice it, then load a state dict or `fill_randomly`, then move it to its device.

    Raises:
        UserError, or whatever its library raises: `base` does not describe a model.
    """
    keys = ("frame", "name", "precision", "kwargs", "transform")
    settings = ModelSettings.model_validate_json(json.dumps({key: base[key] for key in keys}))
    with offline():
        return build_tower(settings, device, saved=dict(base))

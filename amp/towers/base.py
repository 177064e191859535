"""What every library's vision tower gives to the method."""

import logging
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from amp.errors import UserError, nearest, shortened
from amp.run.identity import first_difference
from amp.settings.model import ModelSettings
from amp.towers.heads.slots import HeadSlot
from amp.towers.mlps.slots import MlpSlot, Slot
from amp.towers.weights import why_refused


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower inside its whole model, frozen and in eval mode.

    B images, C channels, S side in pixels, D width, N texts, E width of an embedding.

    Attributes:
        base: what rebuilds the dense model: `{frame, name, kwargs, precision, ...}`, JSON-able.
        model: the whole model, text tower included; what is saved.
        visual: the vision tower, a submodule of `model` (or `model` itself).
        blocks: transformer blocks by path in `visual`, first to last.
        slots: the prunable MLP of each block, in the same order.
        heads: the attention of each block, in the same order, where heads can be removed too; else none.
        feature: images (B, C, S, S) -> the criterion's feature (B, D).
        num_prefix_tokens: tokens before the patch tokens (CLS, registers).
        read_tokens: those of them that the feature reads, as `amp.towers.build_tower` finds it.
        preprocess: `{size, mean, std, interpolation, ...}` of the evaluation transform.
        notes: what of the model the user should know, a line each.
        dtype: images are cast to it.
        transform: evaluation transform, PIL image -> (C, S, S) fp32.
        make_tokenizer: builds the text tokenizer, texts -> ids (N, context); gives None where there is no text tower.
        encode_image: images (B, C, S, S) -> embeddings (B, E), not normalised; None where there is no text tower.
        encode_text: ids (N, context) -> embeddings (N, E), not normalised; None where there is no text tower.
    """

    base: Mapping[str, Any]
    model: nn.Module
    visual: nn.Module
    blocks: Mapping[str, nn.Module]
    slots: tuple[MlpSlot, ...]
    feature: Callable[[Tensor], Tensor]
    num_prefix_tokens: int
    preprocess: Mapping[str, Any]
    dtype: torch.dtype
    transform: Callable[[Any], Tensor]
    make_tokenizer: Callable[[], Any]
    encode_image: Callable[[Tensor], Tensor] | None = None
    encode_text: Callable[[Tensor], Tensor] | None = None
    read_tokens: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    heads: tuple[HeadSlot, ...] = ()

    @property
    def image_size(self) -> int:
        """S, the side of the square input in pixels."""
        size = self.preprocess["size"]
        return int(size if isinstance(size, int) else size[0])

    @property
    def device(self) -> torch.device:
        """Of the vision tower."""
        return next(self.visual.parameters()).device

    def blank(self, count: int = 1) -> Tensor:
        """Images of zeros, (count, 3, S, S), as the tower takes them: on its device, in its dtype."""
        return torch.zeros(count, 3, self.image_size, self.image_size, dtype=self.dtype, device=self.device)

    def difference(self, base: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
        """(key, its value, this tower's) of the first thing in which `base`, another tower's, is of another model.

        None where both are of one, whatever their widths and weights.
        """
        of_other, own = ({key: of.get(key) for key in ("frame", "model_config", "kwargs")} for of in (base, self.base))
        return first_difference({"settings": of_other}, {"settings": own})

    @property
    def widths(self) -> list[int]:
        """Hidden width of every block, first to last."""
        return [slot.hidden_width for slot in self.slots]

    @property
    def num_heads(self) -> list[int]:
        """Of every block, first to last, where heads can be removed; else none."""
        return [slot.num_units for slot in self.heads]

    @property
    def units(self) -> list[Slot]:
        """All that is pruned, in the order in which an image passes it."""
        return in_order(self.slots, self.heads)

    @property
    def counts(self) -> list[int]:
        """How many units each of `units` has: the widths, and where heads can be removed, their numbers."""
        return in_order(self.widths, self.num_heads)


def in_order(of_mlps: Sequence[Any], of_heads: Sequence[Any]) -> list[Any]:
    """Of every block what is its attention's, where there is such, before what is its MLP's."""
    if not of_heads:
        return list(of_mlps)
    return [one for pair in zip(of_heads, of_mlps, strict=True) for one in pair]


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries log that weights are random; without `pretrained` that is what was asked for.

    transformers asks at the terminal whether a folder's own code may run: here the answer is no, at once.
    """
    if "transformers" in sys.modules:
        import transformers.dynamic_module_utils

        transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def offline() -> Iterator[None]:
    """Nothing inside reaches for the hub of Hugging Face; what its cache holds is found."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def building(settings: ModelSettings, weights: str | None, library: str) -> Iterator[None]:
    """Around a library's factory: what it says of wrong weights and arguments becomes a UserError of one line."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, message="Detected pickle protocol")
            yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError("model.pretrained", f"{weights}: {why_refused(error)}") from None
    except Exception as error:  # A library raises anything at what it was not made for.
        key, what = _blamed(error, settings, weights, library)
        raise UserError(key, f"{what} ({first_line(error) or type(error).__name__})") from None


def _blamed(error: Exception, settings: ModelSettings, weights: str | None, library: str) -> tuple[str, str]:
    """The setting that an error of a library's factory is about, and what is wrong with it."""
    if weights and (isinstance(error, LocalEntryNotFoundError) or "download" in str(error)):
        return "model.pretrained", f"{weights}: could not be downloaded; if this machine is offline, give a file"
    if weights and isinstance(error, (SafetensorError, EOFError, OSError)):
        return "model.pretrained", f"{weights}: cannot be read"
    if weights and isinstance(error, (AttributeError, KeyError, StopIteration, ValueError)):
        return "model.pretrained", f"{weights}: does not hold named tensors"
    if weights and not isinstance(error, TypeError):
        return "model.pretrained", f"{weights}: not the weights of {settings.name}"
    if settings.kwargs:
        return "model.kwargs", f"{settings.kwargs}: {library} does not accept them"
    return "model.name", f"{settings.name}: {library} cannot build it"


def first_line(error: Exception) -> str:
    """The start of a library's message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(" ".join(lines[:2]))


def refuse_loading(kwargs: Mapping[str, Any], loading: frozenset[str]) -> None:
    """Raises UserError when factory arguments would read files of their own choice, or run code in them."""
    refused = sorted(loading & kwargs.keys())
    if refused:
        raise UserError("model.kwargs", f"{', '.join(refused)}: not allowed; name the weights of the model instead")


def check_weights(settings: ModelSettings, known_tags: list[str]) -> None:
    """Raises UserError unless `pretrained` is a file, a known tag or nothing."""
    weights = settings.pretrained
    if weights and weights not in known_tags and not Path(weights).is_file():
        raise UserError(
            "model.pretrained",
            f"{weights!r} is neither an existing file nor a tag of {settings.name}"
            f"{nearest(weights, known_tags)} (tags: {', '.join(known_tags) or 'none'})",
        )

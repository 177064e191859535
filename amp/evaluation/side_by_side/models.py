"""The two models of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from amp.errors import UserError, under
from amp.evaluation.options import CompareOptions
from amp.models.folder import FolderConfig, load_tower, read_folder_config
from amp.models.open import open_dense, open_tower
from amp.settings.model import IN_MEMORY, TEACHER_IN_MEMORY, Frame, ModelSettings
from amp.towers import Tower, known_weights, library, tell_preprocess

ROUNDING = 2.0**-7  # of a weight's norm; storing it in bf16 changes less
_KEYS = ("frame", "name", "kwargs", "transform")


@dataclass(frozen=True)
class Dense:
    """The dense model of a comparison, before it is opened.

    Attributes:
        pruned: what the pruned model's folder says of itself.
        name: a library's name, a model JSON or a folder.
        pretrained: its weights, as the user or the folder names them; None where `name` holds them, or without any.
        base: that of `pruned`, whose model it is; None where the user names another.
        recorded: the folder whose config.json names the weights, for messages; None where the user does.
    """

    pruned: FolderConfig
    name: str
    pretrained: str | None
    base: Mapping[str, Any] | None
    recorded: str | None

    def open(self, options: CompareOptions, device: str, shapes: Tower | None = None) -> Tower:
        """In fp32. Raises UserError under the option that holds the mistake.

        Args:
            shapes: what this gave on the meta device, where that is at hand.
        """
        with (
            under("--dense", instead_of="model.name"),
            under("--dense", instead_of="--model"),
            under("--pretrained", instead_of="model.pretrained"),
        ):
            if self.base is None:
                tower = open_tower(self.name, options.model_type, self.pretrained, "fp32", device, shapes=shapes)
                frame: Frame = tower.base["frame"]
                weights = known_weights(self.pretrained, frame)
                if device == "meta" and weights and not Path(weights).exists():
                    library(frame).check(ModelSettings(frame=frame, name=self.name, pretrained=weights))
                return tower
            weights = known_weights(self.pretrained, self.base["frame"])
            of_base = {key: self.base[key] for key in _KEYS}
            settings = ModelSettings.model_validate({**of_base, "pretrained": weights, "precision": "fp32"})
            try:
                if device == "meta":
                    library(self.base["frame"]).check(settings)
                return open_dense(settings, device=device, shapes=shapes)
            except UserError as error:
                if self.recorded is None:
                    raise
                where = f"recorded in {self.recorded}/config.json; use --dense and --pretrained to give another one"
                raise UserError(error.key, f"{error.text} ({where})", error.rank_local) from None


def find_dense(options: CompareOptions) -> Dense:
    """Which model the folder was pruned from, unless the options name it.

    Raises:
        UserError: not a folder of a pruned model, or one that does not tell the dense weights.
    """
    config = read_folder_config(options.folder)
    name, own = str(config.base["name"]), library(config.base["frame"])
    if options.dense is not None and options.dense != name:
        return Dense(config, options.dense, options.pretrained, None, None)
    if options.pretrained is not None or (options.dense is not None and own.folders):
        return Dense(config, name, options.pretrained, config.base, None)
    model = _recorded(config.provenance)
    if model is None:
        hint = f"give --dense {name}" if own.folders else "give a tag or a file, or the dense model's folder as --dense"
        tag = str(config.base.get("variant")).partition(".")[2]
        example = f"; for example --pretrained {tag}, if those were its weights" if tag else ""
        raise UserError(
            "--pretrained",
            f"missing; {options.folder} does not record the weights of the dense {name}: {hint}{example}",
        )
    return Dense(config, name, model.get("pretrained"), config.base, options.folder)


def pruned_on(pruned: FolderConfig, roots: Sequence[str | None]) -> str | None:
    """The one of these folders of images that is, holds or lies in the one that the pruning saw, if any."""
    settings = pruned.provenance.get("settings")
    data = settings.get("data") if isinstance(settings, Mapping) else None
    seen = data.get("root") if isinstance(data, Mapping) else None
    if not isinstance(seen, str) or not Path(seen).is_dir():
        return None
    own = Path(seen).resolve()
    paths = [(root, Path(root).resolve()) for root in roots if root]
    return next((root for root, path in paths if path.is_relative_to(own) or own.is_relative_to(path)), None)


def _recorded(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The dense model's settings, as a pruning or a distillation records them; None where nobody did, as of an
    object."""
    settings = provenance.get("settings")
    groups = [settings.get(key) for key in ("model", "teacher")] if isinstance(settings, Mapping) else []
    found = next((group for group in groups if isinstance(group, Mapping) and "pretrained" in group), None)
    return None if found is not None and found.get("name") in (IN_MEMORY, TEACHER_IN_MEMORY) else found


def open_pruned(options: CompareOptions, config: FolderConfig, device: str) -> Tower:
    """The folder's model, in fp32. Raises UserError."""
    tower = load_tower(options.folder, device, "fp32", config)
    tell_preprocess(tower)
    return tower


def weights_beside_blocks(tower: Tower) -> dict[str, Tensor]:
    """By name, on the CPU: the vision tower's parameters outside its blocks, but no constants, which many share.

    Pruning keeps all of these weights, distillation the final norm and what follows it.
    """
    blocks = tuple(f"{path}." for path in tower.blocks)
    outside = ((name, own) for name, own in tower.visual.named_parameters() if not name.startswith(blocks))
    return {name: own.detach().cpu() for name, own in outside if own.min() < own.max()}


def is_of(pruned: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> bool:
    """Whether a tower can have been pruned from another: one of its weights beside the blocks is the other's."""
    both = [(pruned[name], dense[name]) for name in pruned.keys() & dense.keys()]
    pairs = [(own, other) for own, other in both if own.shape == other.shape]
    return not pairs or any((own - other).norm() <= ROUNDING * other.norm() for own, other in pairs)

"""The keyword arguments of a call -> settings: the recommended ones, and what the caller says instead."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from amp.data.given import is_path
from amp.errors import UserError
from amp.settings.base import MOST
from amp.settings.data import batch_within
from amp.settings.model import IN_MEMORY, GivenModelSettings
from amp.settings.prune import RECOMMENDED, PruneConfig, SearchSettings, TargetSettings
from amp.settings.reading.keywords import from_keywords, merged
from amp.settings.reading.yaml_files import Raw, validate

SOURCE = "amp.prune"
AT_HAND = "images-in-memory"


@dataclass(frozen=True)
class Asked:
    """What a caller of `amp.prune` asks for.

    Attributes:
        raw: groups of the settings, as the caller said them.
        most: images that nobody asks for more than.
    """

    raw: Mapping[str, Any]
    most: int = MOST

    @classmethod
    def of(cls, images: Any, keywords: Mapping[str, Any]) -> "Asked":
        """Raises UserError for unknown names, and where nothing says how small the model is to be."""
        raw = from_keywords(PruneConfig, keywords, SOURCE, ("model", "data", "score", "prune"))
        own: Any = raw.get("prune") or {}
        sized = any((own.get("target") or {}).get(key) is not None for key in TargetSettings.model_fields)
        if not sized and own.get("widths") is None and own.get("allocation") != "search":
            advice = (
                "give a size: params=0.6 for 60 % of the tower's parameters, flops=0.6, throughput=1.5 or latency=0.6"
            )
            raise UserError(SOURCE, f"{advice}; or widths=[...], or allocation='search' for the binary search")
        place = {"name": "imagefolder", "root": str(images) if is_path(images) else AT_HAND}
        return cls(merged({"data": place, "output": {"dir": "."}}, raw))

    def of_size(self, sizes: Mapping[str, float | None], compensation: str | None = None) -> "Asked":
        """The same, of another size; refitted in another way, where one is named."""
        own = {**self.raw.get("prune", {}), "target": dict(sizes), "widths": None}
        refit = {} if compensation is None else {"compensation": compensation}
        return replace(self, raw={**self.raw, "prune": {**own, **refit}})

    @property
    def model(self) -> GivenModelSettings:
        """What is said of the model. Raises UserError."""
        return validate(GivenModelSettings, dict(self.raw.get("model") or {}), f"{SOURCE}: model")

    def config(self, num_scored: int = MOST, num_held_out: int = MOST) -> PruneConfig:
        """The settings, where there are so many images: the recommended numbers fall to what there is.

        Raises:
            UserError: a value that is not allowed.
        """
        whole = merged(self._recommended(), self.raw)
        whole["model"] = {"name": IN_MEMORY, **(self.raw.get("model") or {})}
        said_data, said_prune = self.raw.get("data") or {}, self.raw.get("prune") or {}
        data, prune = whole["data"], whole["prune"]
        counts = {"num_samples": num_scored, "num_val_samples": num_held_out}
        if "batch_size" not in said_data:
            said = [said_data.get(key) for key in counts]
            data["batch_size"] = batch_within(data["batch_size"], *counts.values(), *said)
        for key in counts.keys() - said_data.keys():
            data[key] = self._at_least_a_batch(data, min(data[key], counts[key]))
        if "num_calibration_samples" not in said_prune:
            usual = SearchSettings.model_fields["num_calibration_samples"].default
            prune["num_calibration_samples"] = self._at_least_a_batch(data, min(usual, num_scored))
        return validate(PruneConfig, whole, SOURCE)

    def _at_least_a_batch(self, data: Mapping[str, Any], count: int) -> int:
        """Too few images are told as such, not as settings that do not go together."""
        return max(data["batch_size"], count) if isinstance(data["batch_size"], int) else count

    def _recommended(self) -> Raw:
        """Where widths are given or searched, no size is to be met."""
        own = self.raw.get("prune") or {}
        recommended: Raw = {key: dict(group) for key, group in RECOMMENDED.items()}
        if own.get("widths") is not None or own.get("allocation") == "search":
            recommended["prune"] = {"compensation": RECOMMENDED["prune"]["compensation"]}
        return recommended

"""Models in memory: what notebooks and other programs call, as `amp.prune`, `amp.distill`, `amp.save` and their kin."""

from amp.api.distilled import Distilled, distill
from amp.api.files import load_pruned, save
from amp.api.pruned import PrunedModel, compile, prune

__all__ = ["Distilled", "PrunedModel", "compile", "distill", "load_pruned", "prune", "save"]

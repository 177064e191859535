"""Models from files and to files: folders of ours, published checkpoints, whatever a user names."""

from amp.models.open import load_pruned

__all__ = ["load_pruned"]

"""Images without labels: which files there are, how they are read, in which order, with which augmentation."""

from amp.data.augmentation import augmentation
from amp.data.batches import Batches, Transform
from amp.data.layouts import Source, Split
from amp.data.listing import list_images
from amp.data.scenes import build_scenes

__all__ = ["Batches", "Source", "Split", "Transform", "augmentation", "build_scenes", "list_images"]

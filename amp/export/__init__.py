"""Pruned and dense towers for other programs: ONNX files, programs of torch.export, and blocks that are compiled."""

from amp.export.compiled import compile_blocks
from amp.export.images import describe_images
from amp.export.outputs import OUTPUTS, default_output
from amp.export.write import SUFFIXES, export_tower

__all__ = ["OUTPUTS", "SUFFIXES", "compile_blocks", "default_output", "describe_images", "export_tower"]

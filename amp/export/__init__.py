"""Pruned and dense towers for other programs: ONNX files, programs of torch.export, and blocks that are compiled."""

from typing import Any

__all__ = ["check_target", "compile_blocks", "describe_images", "export_tower"]


def __getattr__(name: str) -> Any:
    # The command answers mistakes without torch.
    if name == "check_target":
        from amp.export.target import check_target

        return check_target
    if name == "compile_blocks":
        from amp.export.compiled import compile_blocks

        return compile_blocks
    if name == "describe_images":
        from amp.export.images import describe_images

        return describe_images
    if name == "export_tower":
        from amp.export.write import export_tower

        return export_tower
    raise AttributeError(f"module 'amp.export' has no attribute {name!r}")

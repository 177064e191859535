"""Writes a tower as a file that other programs run, checked against the tower before it gets its name."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from amp.errors import UserError
from amp.export.check import can_run, check_file, check_images
from amp.export.images import describe_images
from amp.export.outputs import OUTPUTS, default_output, labels
from amp.export.program import TRACED_BATCH, Precision, Program, to_onnx, trace
from amp.export.target import ONNX, TORCH, check_target, images_file
from amp.run.console import say
from amp.run.files import atomic_together
from amp.run.identity import versions
from amp.run.sealed import read_json, write_json
from amp.towers import Tower

# A file of ONNX is one message of protobuf, which ends at 2 GiB: above this, weights stand in a file of their own.
MOST_INSIDE = 1_500_000_000  # bytes


def export_tower(
    tower: Tower, target: str | Path, precision: Precision = "fp32", output: str | None = None
) -> dict[str, Any]:
    """Exports a tower to `target` (out.onnx or out.pt2) and describes its preprocessing in out.preprocess.json.

    The exported file takes images (B, 3, S, S) in fp32 with any batch size B and returns (B, N) in fp32, whatever the
    `precision` of its weights. ONNX files above 1.5 GB keep their weights in out.onnx.data. The file also holds a
    description of its output, its preprocessing and its origin: as metadata in ONNX, as extra files in a program.

    Args:
        tower: dense or pruned, on any device; it does not change.
        target: the file to write, ending in .onnx or .pt2; an existing file is replaced.
        precision: precision of the weights in the file, fp32 or fp16.
        output: embeddings, logits or features; None: embeddings of a dual encoder, logits of a classifier, else
            features.

    Returns:
        {output, precision, difference, scale, width, bytes, checked}: `difference` is the largest difference between
        the outputs of the file and of the model, `scale` the largest of these outputs; both are None if the file
        cannot be run here.

    Raises:
        UserError: the model has no such output or cannot be exported, or `target` cannot be written.
        StoppedError: the outputs of the file differ from those of the model; the file is not kept.
    """
    path = check_target(target)
    images = images_file(path)
    output = output or default_output(tower)
    described, name = describe_images(tower), str(tower.base["name"])
    _check_images_file(images, described)
    batches = check_images(tower.image_size)
    with torch.no_grad():
        exact = Program(tower, output)
        expected = [exact(images_BCSS) for images_BCSS in batches]
    unread = exact.unread(batches[0])
    program = exact if precision == "fp32" else Program(tower, output, precision)
    for own in {exact, program}:
        own.drop(unread)
    example_BCSS = torch.randn(TRACED_BATCH, 3, tower.image_size, tower.image_size)
    traced = trace(program, example_BCSS, name)
    told = {
        "output": {"name": output, "meaning": OUTPUTS[output], "width": expected[0].shape[1]},
        "preprocess": described,
        "made_of": {"model": name, "frame": tower.base["frame"], "widths": tower.widths, "precision": precision},
        "versions": versions(),
        **({"labels": names} if (names := labels(tower)) and output == "logits" else {}),
    }
    write = _WRITERS[path.suffix]
    with atomic_together(path.with_name(f"{path.name}.data"), images, path) as folder:
        say(f"writing {path}: {output} in {precision}")
        write(traced, told, folder / path.name)
        write_json(folder / images.name, described)
        checked = can_run(path)
        difference, scale = (
            check_file(folder / path.name, batches, expected, precision, str(path)) if checked else (None, None)
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
    made = {"output": output, "precision": precision, "width": expected[0].shape[1], "bytes": size}
    return {**made, "checked": checked, "difference": difference, "scale": scale}


def _check_images_file(path: Path, described: Mapping[str, Any]) -> None:
    """out.onnx and out.pt2 of one model share it; that of another model is not replaced unseen."""
    if path.exists() and read_json(path, "delete it") != described:
        raise UserError(path, "belongs to a model with other preprocessing; give another file name, or delete it")


def _write_torch(traced: ExportedProgram, told: Mapping[str, Any], file: Path) -> None:
    torch.export.save(traced, file, extra_files={key: json.dumps(value) for key, value in told.items()})


def _write_onnx(traced: ExportedProgram, told: Mapping[str, Any], file: Path) -> None:
    program = to_onnx(traced, told["output"]["name"], told["made_of"]["model"])
    program.model.metadata_props.update({key: json.dumps(value) for key, value in told.items()})
    size = sum(tensor.nbytes for tensor in traced.state_dict.values())
    program.save(file, external_data=size > MOST_INSIDE)


_WRITERS: dict[str, Callable[[ExportedProgram, Mapping[str, Any], Path], None]] = {
    ONNX: _write_onnx,
    TORCH: _write_torch,
}

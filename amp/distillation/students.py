"""A teacher and its student: loaded, proved to be of one architecture, and given one head."""

from collections.abc import Collection
from dataclasses import replace

import torch

from amp.errors import UserError, under
from amp.models.folder import FolderConfig
from amp.models.open import load_student
from amp.settings.distill import DistillConfig
from amp.towers import Tower, after_last_block, build_tower, describe_preprocess, tell_preprocess


def load_teacher_and_student(config: DistillConfig) -> tuple[Tower, Tower, FolderConfig]:
    """The teacher and the student in their precisions, the head shared; and what is known of the student.

    The head is the fp32 one of the teacher's file, whatever the teacher's precision.
    Raises:
        UserError: one of them cannot be loaded, or they do not belong together.
    """
    dense = config.teacher.as_model("fp32")
    with under("teacher", instead_of="model"):
        shapes = build_tower(dense, "meta")
        teacher = build_tower(dense, shapes=shapes)
    tell_preprocess(teacher)
    student, student_config = load_student(config.student.pretrained, teacher)
    check_architecture(teacher, student)
    share_head(teacher, student, after_last_block(shapes))
    if config.optim.precision == "pure_bf16":
        # Neither the head, nor buffers: rotary frequencies in bf16 would move every patch.
        for parameter in student.visual.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if config.optim.precision != "fp32":
        del teacher  # before the other one is there
        teacher = build_tower(config.teacher.as_model("bf16"), shapes=shapes)
    return teacher, student, student_config


def check_architecture(teacher: Tower, student: Tower) -> None:
    """Raises UserError unless the student is the teacher's architecture with MLPs as wide or narrower."""
    if difference := teacher.difference(student.base):
        key, own, theirs = difference
        names = f"a pruned {student.base['name']!r}, which does not match the teacher {teacher.base['name']!r}"
        raise UserError("student.pretrained", f"{names}: its {key} is {own!r}, the teacher's is {theirs!r}")
    theirs, own = (describe_preprocess(replace(tower, notes=())) for tower in (teacher, student))
    if own != theirs:
        raise UserError(
            "student.pretrained",
            f"was pruned with {own}, but the teacher has {theirs}: set teacher.transform, or prune again with the "
            "teacher's",
        )
    for name, narrow, wide in zip(teacher.blocks, student.widths, teacher.widths, strict=True):
        if narrow > wide:
            raise UserError("student.pretrained", f"{name}: {narrow} hidden neurons, but the teacher has only {wide}")


@torch.no_grad()
def share_head(teacher: Tower, student: Tower, head: Collection[str]) -> None:
    """Gives the student the teacher's final norm and projection or head, frozen; frees all else of its tower.

    Args:
        head: paths of those parameters, as `amp.towers.after_last_block` finds them.
    """
    theirs = dict(teacher.visual.named_parameters())
    for name, parameter in student.visual.named_parameters():
        parameter.requires_grad_(name not in head)
        if name in head:
            parameter.copy_(theirs[name])

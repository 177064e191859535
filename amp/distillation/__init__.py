"""Distillation: a pruned student learns its dense teacher's last tokens, without labels (AMP, arXiv 2603.08100).

What it learns (`losses`), from whom (`students`), on which images (`images`), how a step is done (`trainer`, with
`optimizer` and `placement`), how the steps become a run (`loop`, with `validation` and `speed`), what is kept of
it (`keeping`), and what that needs of a GPU (`memory`).
"""

from amp.distillation.images import held_out_images, training_images
from amp.distillation.keeping import MemoryKeeper, RunKeeper
from amp.distillation.loop import Loop
from amp.distillation.losses import distillation_loss
from amp.distillation.memory import describe_plan, plan_memory
from amp.distillation.optimizer import make_optimizer, rates
from amp.distillation.students import load_teacher_and_student, share_head
from amp.distillation.trainer import NotFiniteError, Trainer
from amp.distillation.validation import Validation

__all__ = [
    "Loop",
    "MemoryKeeper",
    "NotFiniteError",
    "RunKeeper",
    "Trainer",
    "Validation",
    "describe_plan",
    "distillation_loss",
    "held_out_images",
    "load_teacher_and_student",
    "make_optimizer",
    "plan_memory",
    "rates",
    "share_head",
    "training_images",
]

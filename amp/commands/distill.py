"""Distils the dense teacher into its pruned student; writes log.jsonl, tensorboard/ and distilled/."""

import argparse
from pathlib import Path

from amp.data.listing import Listing
from amp.errors import under
from amp.evaluation.student import check_metric
from amp.run.console import reproduce, say
from amp.run.files import begin_sha256, model_files
from amp.run.options import check_model_folder, check_run_folder
from amp.run.processes.environment import MOST_PROCESSES, place_of
from amp.settings.base import at_least
from amp.settings.distill import DistillConfig
from amp.settings.reading.command_line import parse_args


def read_config() -> DistillConfig | None:
    """The settings that were typed; None where --dry_run asks for no more than what it prints."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry_run", action="store_true", help="print the GPU memory that the run needs, and exit")
    gpus = "GPUs that --dry_run assumes (default: the processes of torchrun, else 8)"
    options.add_argument("--num_gpus", type=at_least(1, MOST_PROCESSES), help=gpus)
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()
    if args.dry_run:
        from amp.distillation.memory import describe_plan

        own = place_of()
        say(describe_plan(config, args.num_gpus or (own.size if own else 8)))
        return None
    return config


def _check_inputs(config: DistillConfig, listing: Listing) -> None:
    """What is missing is told at once, unless the distillation may be done, which needs no more."""
    check_run_folder(config)
    check_metric(config)
    if Path(config.output.dir, "distilled").exists():
        return
    if not Path(config.student.pretrained).is_file():
        check_model_folder(config.student.pretrained)
    listing.check(config.data.batch_size, ["train"])


def main() -> None:
    config = read_config()
    if config is None:
        return
    listing = Listing(config.data)
    _check_inputs(config, listing)
    begin_sha256(config.dense.weights)

    from amp.commands._plan import after_distilling, describe_distillation, describe_steps
    from amp.distillation import (
        Loop,
        RunKeeper,
        Trainer,
        Validation,
        held_out_images,
        load_teacher_and_student,
        training_images,
    )
    from amp.evaluation.student import build_metric
    from amp.models.folder import save_tower
    from amp.models.open import check_student
    from amp.run.files import file_sha256, room_for
    from amp.run.run import open_run
    from amp.run.world import world
    from amp.towers import default_frame, library

    frame = config.teacher.frame or default_frame(config.teacher.name, "teacher.name")
    config = config.with_frame(frame)

    def inputs() -> dict[str, str | None]:
        with under("teacher", instead_of="model"):
            library(frame).check(config.dense)
        check_student(config.student.pretrained)
        listing.check_fills_batch("train", config.data.batch_size)
        return {"student_sha256": file_sha256(config.student.pretrained), **listing.digests("train")}

    outputs = model_files("distilled")
    with open_run(config, inputs, outputs) as run:
        if run.done(*outputs):
            return
        teacher, student, pruned = load_teacher_and_student(config)
        say(describe_distillation(config))
        batches = training_images(config, teacher, listing)
        validation = Validation(
            held_out_images(config, teacher.transform, listing), build_metric(config, teacher, student)
        )
        trainer = Trainer(teacher, student, config.optim, config.data.batch_size, len(batches))
        keeper = RunKeeper(run)
        say(describe_steps(trainer, batches, max(keeper.checkpoints.steps(), default=0)))
        last = Loop(trainer, batches, keeper, config.output, validation).train()
        batches.say_broken()
        weights = trainer.weights()
        provenance = {**run.header, "student": pruned.provenance, "last_step": last}
        if world().is_main:
            with room_for(run.path("distilled")):
                command = reproduce("distill.py")
                save_tower(student, pruned.kept, provenance, run.path("distilled"), weights, command=command)
        world().barrier()
        say(after_distilling(run.folder, config.data))

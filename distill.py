"""Distils a pruned student from its dense teacher; writes log.jsonl, tensorboard/ and distilled/."""

import argparse
import os
import shutil

from amp.evaluate.student import build_metric, check_metric
from amp.run.console import run_script, say
from amp.settings.command_line import parse_args
from amp.settings.distill import DistillConfig


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry_run", action="store_true", help="print what a GPU's memory must hold, and end")
    options.add_argument("--num_gpus", type=int, help="of --dry_run (default: the processes of torchrun, else 8)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()
    if args.dry_run:
        from amp.distill.memory import describe_plan

        processes = int(os.environ.get("WORLD_SIZE", 8))
        say(describe_plan(config, processes if args.num_gpus is None else args.num_gpus))
        return
    check_metric(config)

    from amp.data.augmentation import augmentation
    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.distill.distiller import Distiller
    from amp.distill.students import load_pair
    from amp.distill.validation import Validation, hold_out
    from amp.models.folder import read_folder_config, save_tower
    from amp.models.open import check_student
    from amp.run import world as distributed
    from amp.run.files import file_sha256, prepare_output, room_for
    from amp.run.identity import check_same, identity, versions
    from amp.towers import default_frame

    with distributed.start() as world:
        config = config.with_frame(config.teacher.frame or default_frame(config.teacher.name, "teacher.name"))
        folder = world.from_main(lambda: prepare_output(config.output.dir))
        check_student(config.student.pretrained)
        digest = file_sha256(config.student.pretrained)
        header = {**identity(config, student_sha256=digest), "versions": versions()}
        if world.broadcast((folder / "distilled").is_dir()):
            check_same(folder / "distilled", read_folder_config(folder / "distilled").provenance, header)
            say(f"already done: {folder / 'distilled'}")
            return
        teacher, student, student_config = load_pair(config)
        view = teacher.preprocess
        transform = teacher.transform
        if config.data.augment != "none":
            size = teacher.image_size
            transform = augmentation(config.data.augment, size, view["mean"], view["std"], view["interpolation"])
        batches = Batches(list_images(config.data, "train"), transform, config.data)
        validation = Validation(hold_out(config, teacher.transform), build_metric(config, teacher, student))
        distiller = Distiller(teacher, student, batches, config.optim, config.output, header, validation)
        last = distiller.run()
        batches.say_broken()
        weights = distiller.weights()
        if world.is_main:
            for left in folder.glob(".distilled.*.partial"):  # of a killed run
                shutil.rmtree(left)
            provenance = {**header, "student": student_config.provenance, "last_step": last}
            with room_for(folder / "distilled"):
                save_tower(student, student_config.kept, provenance, folder / "distilled", weights)
        world.barrier()
        say(f"wrote {folder / 'distilled'}; log in {folder / 'log.jsonl'} and TensorBoard in {folder / 'tensorboard'}")


if __name__ == "__main__":
    run_script(main)

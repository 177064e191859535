"""Distils a pruned student from its dense teacher; writes log.jsonl, tensorboard/ and distilled/."""

import argparse
import os

from amp.cli import parse_args
from amp.config import DistillConfig
from amp.errors import UserError
from amp.runs import run_script, say


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry_run", action="store_true", help="print what a GPU's memory must hold, and end")
    options.add_argument("--num_gpus", type=int, help="of --dry_run (default: the processes of torchrun, else 8)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()
    if args.dry_run:
        from amp.memory import describe_plan

        processes = int(os.environ.get("WORLD_SIZE", 8))
        say(describe_plan(config, processes if args.num_gpus is None else args.num_gpus))
        return

    from amp import distributed
    from amp.checkpoint import check_student, load_student, read_folder_config, save_tower
    from amp.data import Batches, augmentation, hold_out, list_images
    from amp.distillation import Distiller, check_pair, share_head
    from amp.placement import set_weights
    from amp.runs import check_same_run, describe, file_sha256, prepare_output, room_for
    from amp.towers import after_last_block, build_tower, default_frame

    with distributed.start() as world:
        config = config.with_frame(config.teacher.frame or default_frame(config.teacher.name, "teacher.name"))
        folder = world.from_main(lambda: prepare_output(config.output.dir))
        check_student(config.student.pretrained)
        digest = file_sha256(config.student.pretrained)
        header = describe(config, config.teacher.as_model("fp32").weights, student_sha256=digest)
        if world.broadcast((folder / "distilled").is_dir()):
            check_same_run(folder / "distilled", read_folder_config(folder / "distilled").provenance, header)
            say(f"already done: {folder / 'distilled'}")
            return
        fp32 = config.optim.precision == "fp32"
        try:
            teacher = build_tower(config.teacher.as_model("fp32" if fp32 else "bf16"))
        except UserError as error:
            raise UserError(str(error).replace("model.", "teacher.", 1)) from None
        student, student_config = load_student(config.student.pretrained, config.teacher.as_model("fp32"))
        check_pair(teacher, student)
        share_head(teacher, student, after_last_block(build_tower(config.teacher.as_model("fp32"), "meta")))
        if config.optim.precision == "pure_bf16":
            student.visual.bfloat16()
        view = teacher.preprocess
        transform = teacher.transform
        if config.data.augment != "none":
            size = teacher.image_size
            transform = augmentation(config.data.augment, size, view["mean"], view["std"], view["interpolation"])
        batches = Batches(list_images(config.data, "train"), transform, config.data, world)
        held_out = hold_out(config, teacher.transform, world)
        distiller = Distiller(teacher, student, batches, config.optim, config.output, header, world, held_out)
        last = distiller.run()
        batches.say_broken()
        weights = distiller.weights()
        if world.is_main:
            whole, _ = load_student(config.student.pretrained, config.teacher.as_model("fp32"))
            set_weights(whole, weights)
            provenance = {**header, "student": student_config.provenance, "last_step": last}
            with room_for(folder / "distilled"):
                save_tower(whole, student_config.kept, provenance, folder / "distilled")
        world.barrier()
        say(f"wrote {folder / 'distilled'}; log in {folder / 'log.jsonl'} and TensorBoard in {folder / 'tensorboard'}")


if __name__ == "__main__":
    run_script(main)

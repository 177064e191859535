"""Distils a pruned student from its dense teacher; writes log.jsonl, tensorboard/ and distilled/."""

from amp.cli import parse_args
from amp.config import DistillConfig
from amp.errors import UserError
from amp.runs import run_script


def main() -> None:
    config = parse_args(DistillConfig, __doc__)

    from amp import distributed
    from amp.checkpoint import check_student, load_student, read_folder_config, save_tower
    from amp.data import Batches, augmentation, list_images
    from amp.distillation import CHECKPOINT, Distiller, check_pair, share_head
    from amp.runs import check_same_run, describe, file_sha256, prepare_output, say
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
            teacher = build_tower(config.teacher.as_model("fp32" if fp32 else "bf16"), str(world.device))
        except UserError as error:
            raise UserError(str(error).replace("model.", "teacher.", 1)) from None
        student, student_config = load_student(config.student.pretrained, config.teacher.as_model("fp32"))
        student.model.to(world.device)
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
        distiller = Distiller(teacher, student, batches, config.optim, config.output, header, world)
        last = distiller.run()
        batches.say_broken()
        if world.is_main:
            provenance = {**header, "student": student_config.provenance, "last_step": last}
            save_tower(student, student_config.kept, provenance, folder / "distilled")
            (folder / CHECKPOINT).unlink(missing_ok=True)
        world.barrier()
        say(f"wrote {folder / 'distilled'}; log in {folder / 'log.jsonl'} and TensorBoard in {folder / 'tensorboard'}")


if __name__ == "__main__":
    run_script(main)

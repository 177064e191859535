"""Time of one distillation step beside that of its parts alone: teacher, student, optimizer; random images.

python eval/eval_step.py --config_file configs/distill/distill_open_clip_g.yaml
"""

import argparse

from amp.cli import parse_args
from amp.config import DistillConfig
from amp.runs import run_script


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--num_rounds", type=int, default=20, help="rounds of each, in turn (default: 20)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()

    import tempfile

    from amp import distributed
    from amp.checkpoint import load_student
    from amp.data import Batches, list_images
    from amp.distillation import Distiller, check_pair, share_head
    from amp.towers import after_last_block, build_tower
    from eval.step import describe_times, time_steps

    with distributed.start() as world, tempfile.TemporaryDirectory() as folder:
        teacher = build_tower(config.teacher.as_model("fp32" if config.optim.precision == "fp32" else "bf16"))
        student, _ = load_student(config.student.pretrained, config.teacher.as_model("fp32"))
        check_pair(teacher, student)
        share_head(teacher, student, after_last_block(build_tower(config.teacher.as_model("fp32"), "meta")))
        if config.optim.precision == "pure_bf16":
            student.visual.bfloat16()
        batches = Batches(list_images(config.data, "train"), teacher.transform, config.data, world)
        output = config.output.model_copy(update={"dir": world.broadcast(folder)})
        distiller = Distiller(teacher, student, batches, config.optim, output, {}, world)
        times = time_steps(distiller, args.num_rounds)
        if world.is_main:
            print(describe_times(times))


if __name__ == "__main__":
    run_script(main)

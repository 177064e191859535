"""Time of one distillation step beside that of its parts alone: teacher, student, optimizer; random images.

python eval/eval_step.py --config_file configs/distill/distill_open_clip_g.yaml
"""

import argparse

from amp.run.console import run_script
from amp.settings.base import at_least
from amp.settings.distill import DistillConfig
from amp.settings.reading.command_line import parse_args


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--num_rounds", type=at_least(1), default=20, help="rounds of each, in turn (default: 20)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()

    from studies.step import describe_times, time_steps

    from amp.distillation import Trainer, load_teacher_and_student, training_images
    from amp.run.world import start

    with start() as world:
        teacher, student, _ = load_teacher_and_student(config)
        steps_per_epoch = len(training_images(config, teacher))
        trainer = Trainer(teacher, student, config.optim, config.data.batch_size, steps_per_epoch)
        times = time_steps(trainer, args.num_rounds)
        if world.is_main:
            print(describe_times(times))


if __name__ == "__main__":
    run_script(main)

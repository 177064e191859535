"""Times one step of a distillation, or with --scoring of a scoring, and each of its parts alone, on random images.

python eval/eval_step.py --config_file configs/distill/distill_open_clip_g.yaml
python eval/eval_step.py --scoring --config_file configs/prune_entropy/open_clip_g_coco_entropy.yaml

With --scoring the weights are random, so it needs neither a weights file nor images.
"""

import argparse
import sys

from amp.run.console import run_script, say
from amp.settings.base import at_least
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import parse_args

SHOWN = "print the milliseconds of each"


def _rounds(num_rounds: int) -> str:
    return f"time whole steps and their parts alone on random images, {num_rounds} rounds in turn"


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--num_rounds", type=at_least(1), default=20, help="rounds of each, in turn (default: 20)")
    options.add_argument("--scoring", action="store_true", help="time a scoring step; give the YAML of main_score.py")
    if "--scoring" in sys.argv:
        time_scoring_step(parse_args(PruneConfig, __doc__, more=[options]), options.parse_known_args()[0].num_rounds)
    else:
        time_distillation(parse_args(DistillConfig, __doc__, more=[options]), options.parse_known_args()[0].num_rounds)


def time_distillation(config: DistillConfig, num_rounds: int) -> None:
    """Prints the times of a distillation's step."""
    from studies.step import DISTILLATION, describe_times, time_steps

    from amp.commands._plan.evaluations import describe_study
    from amp.data.listing import Listing
    from amp.distillation import Trainer, load_teacher_and_student, training_images
    from amp.run.world import start

    with start() as world:
        say(describe_study(f"a distillation of {config.teacher.name}", [_rounds(num_rounds)], SHOWN))
        teacher, student, _ = load_teacher_and_student(config)
        steps_per_epoch = len(training_images(config, teacher, Listing(config.data)))
        trainer = Trainer(teacher, student, config.optim, config.data.batch_size, steps_per_epoch)
        times = time_steps(trainer, num_rounds)
        if world.is_main:
            print(describe_times(times, DISTILLATION))


def time_scoring_step(config: PruneConfig, num_rounds: int) -> None:
    """Prints the times of a scoring's step."""
    from studies.scoring_step import SCORING, time_scoring
    from studies.step import describe_times

    from amp.commands._plan.evaluations import describe_study
    from amp.models.throughput import rebuild
    from amp.run.world import start
    from amp.towers import build_tower

    with start() as world:
        say(describe_study(f"a scoring of {config.model.name}, random weights", [_rounds(num_rounds)], SHOWN))
        tower = rebuild(build_tower(config.model, "meta").base, str(world.device))
        times = time_scoring(tower, config.score, config.data.batch_size, num_rounds)
        if world.is_main:
            print(describe_times(times, SCORING))


if __name__ == "__main__":
    run_script(main)

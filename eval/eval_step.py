"""Time of one distillation step beside that of its parts alone: teacher, student, optimizer; random images.

python eval/eval_step.py --config_file configs/distill/distill_open_clip_g.yaml
"""

import argparse

from amp.run.console import run_script
from amp.settings.command_line import parse_args
from amp.settings.distill import DistillConfig


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--num_rounds", type=int, default=20, help="rounds of each, in turn (default: 20)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()

    import tempfile

    from studies.step import describe_times, time_steps

    from amp.data.batches import Batches
    from amp.data.listing import list_images
    from amp.distill.distiller import Distiller
    from amp.distill.students import load_pair
    from amp.run import world as distributed

    with distributed.start() as world, tempfile.TemporaryDirectory() as folder:
        teacher, student, _ = load_pair(config)
        batches = Batches(list_images(config.data, "train"), teacher.transform, config.data)
        output = config.output.model_copy(update={"dir": world.broadcast(folder)})
        distiller = Distiller(teacher, student, batches, config.optim, output, {})
        times = time_steps(distiller, args.num_rounds)
        if world.is_main:
            print(describe_times(times))


if __name__ == "__main__":
    run_script(main)

"""Time of one distillation step beside that of its parts alone: teacher, student, optimizer; random images.

python eval/eval_step.py --config_file configs/distill/distill_open_clip_g.yaml
"""

import argparse

from amp.cli import parse_args
from amp.config_distill import DistillConfig
from amp.runs import run_script


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--num_rounds", type=int, default=20, help="rounds of each, in turn (default: 20)")
    config = parse_args(DistillConfig, __doc__, more=[options])
    args, _ = options.parse_known_args()

    import tempfile

    from amp import distributed
    from amp.data import Batches, list_images
    from amp.distillation import Distiller
    from amp.pair import load_pair
    from eval.step import describe_times, time_steps

    with distributed.start() as world, tempfile.TemporaryDirectory() as folder:
        teacher, student, _ = load_pair(config)
        batches = Batches(list_images(config.data, "train"), teacher.transform, config.data, world)
        output = config.output.model_copy(update={"dir": world.broadcast(folder)})
        distiller = Distiller(teacher, student, batches, config.optim, output, {}, world)
        times = time_steps(distiller, args.num_rounds)
        if world.is_main:
            print(describe_times(times))


if __name__ == "__main__":
    run_script(main)

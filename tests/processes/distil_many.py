"""Distillations of one set of processes, one after another.

torchrun tests/processes/distil_many.py YAML NAME:KEY=VALUE,... ...

Each writes into its output.dir, and the digests of every process's weights into `digests.json`.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from amp.data.listing import Listing
from amp.distillation import Loop, RunKeeper, Trainer, Validation, load_teacher_and_student, training_images
from amp.distillation.trainer import Outcome
from amp.errors import StoppedError
from amp.evaluation.student import build_metric
from amp.run.run import Run
from amp.run.world import gathered, start, world
from amp.settings.distill import DistillConfig
from amp.settings.reading.yaml_files import load_config


def prepare(config: DistillConfig) -> Loop:
    """As distill.py does it."""
    teacher, student, _ = load_teacher_and_student(config)
    augmented = config.model_copy(update={"data": config.data.model_copy(update={"augment": "clip"})})
    batches = training_images(augmented, teacher, Listing(augmented.data))
    validation = Validation(metric=build_metric(config, teacher, student))
    trainer = Trainer(teacher, student, config.optim, config.data.batch_size, len(batches))
    keeper = RunKeeper(Run(config, Path(config.output.dir), {}))
    return Loop(trainer, batches, keeper, config.output, validation)


class Interrupted(Trainer):
    """The last process alone is asked to stop, before step 3."""

    def gradients(self, *given: Any) -> Outcome:
        if self.step == 3 and world().rank == world().size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().gradients(*given)


def main() -> None:
    yaml, *runs = sys.argv[1:]
    with start() as among_all:
        for run in runs:
            name, _, words = run.partition(":")
            folder = Path(yaml).parent / name
            config = load_config(DistillConfig, yaml, [f"output.dir={folder}", *filter(None, words.split(","))])
            loop = prepare(config)
            if name.startswith("interrupted"):
                loop.trainer.__class__ = Interrupted
            stopped = None
            try:
                loop.train()
            except StoppedError as stop:
                stopped = (stop.code, str(stop))
            whole = b"".join(gathered(weight).numpy().tobytes() for weight in loop.trainer._weights.values())
            told = among_all.gather_objects((hashlib.sha256(whole).hexdigest(), loop.trainer.num_own, stopped))
            if among_all.is_main:
                (folder / "digests.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()

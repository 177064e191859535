"""Distillations of one set of processes, one after another: torchrun tests/distil_many.py YAML NAME:KEY=VALUE,... ...

Each writes into its output.dir, and the digests of every process's weights into `digests.json`.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from amp.data.augmentation import augmentation
from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.distill.distiller import Distiller
from amp.distill.students import load_pair
from amp.distill.validation import Validation
from amp.errors import StoppedError
from amp.evaluate.student import build_metric
from amp.run.world import gathered, start, world
from amp.settings.distill import DistillConfig
from amp.settings.load import load_config


def prepare(config: DistillConfig) -> Distiller:
    """As distill.py does it."""
    teacher, student, _ = load_pair(config)
    view = teacher.preprocess
    transform = augmentation("clip", teacher.image_size, view["mean"], view["std"], view["interpolation"])
    batches = Batches(list_images(config.data, "train"), transform, config.data)
    validation = Validation(metric=build_metric(config, teacher, student))
    return Distiller(teacher, student, batches, config.optim, config.output, {}, validation)


class Interrupted(Distiller):
    """The last process alone is asked to stop, before step 3."""

    def _gradients(self, images_BCHW: torch.Tensor) -> Any:
        if self.step == 3 and world().rank == world().size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._gradients(images_BCHW)


def main() -> None:
    yaml, *runs = sys.argv[1:]
    with start() as among_all:
        for run in runs:
            name, _, words = run.partition(":")
            folder = Path(yaml).parent / name
            config = load_config(DistillConfig, yaml, [f"output.dir={folder}", *filter(None, words.split(","))])
            distiller = prepare(config)
            if name.startswith("interrupted"):
                distiller.__class__ = Interrupted
            stopped = None
            try:
                distiller.run()
            except StoppedError as stop:
                stopped = (stop.code, str(stop))
            whole = b"".join(gathered(weight).numpy().tobytes() for weight in distiller._weights.values())
            sharded = sum(own.numel() for own in distiller._own.values())
            told = among_all.gather_objects((hashlib.sha256(whole).hexdigest(), sharded, stopped))
            if among_all.is_main:
                (folder / "digests.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()

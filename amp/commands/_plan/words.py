"""What a command will do with what, before it does it."""

from collections.abc import Sequence

from amp.data.listing import few
from amp.models.throughput import describe_device
from amp.run.files import SCORES
from amp.run.world import world
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.prune import PruneConfig
from amp.towers.library import library

REMOVED = {
    "none": "neurons",
    "heads": "neurons and attention heads",
    "auto": "neurons, and attention heads if the model allows it,",
}
TARGETS = {"params": "parameters", "flops": "FLOPs", "throughput": "images per second", "latency": "latency"}


def describe_pruning(config: PruneConfig, targets: Sequence[tuple[str, float]] = ()) -> str:
    """What a scoring and a pruning will do; `targets` where there are several."""
    what = _title(config), _rank(config), _widths(config, targets), _measure(config)
    lines = [*what, few(config.data.num_samples)]
    return "\n".join(line for line in lines if line)


def describe_scoring(config: PruneConfig) -> str:
    """What a scoring alone will do."""
    return "\n".join([_title(config), _rank(config), f"- write one score per neuron to {config.output.dir}/{SCORES}."])


def describe_slicing(config: PruneConfig, targets: Sequence[tuple[str, float]] = ()) -> str:
    """What a pruning will do with the scores that are there; `targets` as of `describe_pruning`."""
    scores = f"- use the scores in {config.output.dir}/{SCORES} (criterion: {config.score.criterion});"
    return "\n".join([_title(config), scores, _widths(config, targets), _measure(config)])


def describe_distillation(config: DistillConfig) -> str:
    """What a distillation will do."""
    own, images, output = config.optim, config.data, config.output
    teacher = named_model(config.teacher.as_model("fp32"))
    epochs = f"{own.epochs} epoch{'s' if own.epochs > 1 else ''}"
    return "\n".join(
        [
            f"{config.student.pretrained} learns from {teacher}, images from {images.root}, on {hardware()}:",
            f"- train for {epochs} in batches of {images.batch_size} ({own.precision}; augment: {images.augment});",
            f"- save a checkpoint every {output.save_every} steps, and distilled/ at the end, in {output.dir}/.",
        ]
    )


def _title(config: PruneConfig) -> str:
    return f"{named_model(config.model)}, images from {config.data.root}, on {hardware()}:"


def hardware() -> str:
    """What this run has: the CPU, one GPU, or as many processes with one each."""
    own = world()
    device = describe_device(own.device)
    return device if own.size == 1 else f"{own.size} processes, each on {device}"


def named_model(model: ModelSettings) -> str:
    """A dense model, its library where that is known, and its weights."""
    weights = model.weights or ("its own weights" if model.frame and library(model.frame).folders else "random weights")
    return f"{model.name} ({'; '.join(filter(None, (model.frame, weights)))})"


def _rank(config: PruneConfig) -> str:
    data = config.data
    images = "all images" if data.num_samples is None else f"{data.num_samples} images"
    return f"- rank the neurons on {images}, in batches of {data.batch_size} (criterion: {config.score.criterion});"


def _widths(config: PruneConfig, targets: Sequence[tuple[str, float]] = ()) -> str:
    own = config.prune
    refit = "" if own.compensation == "none" else f"; refit: {own.compensation}"
    if asked := targets or (own.target.asked and [own.target.asked]):
        what, values = TARGETS[asked[0][0]], " and ".join(", ".join(f"{value:g}" for _, value in asked).rsplit(", ", 1))
        removed = REMOVED[config.attention]
        return f"- remove {removed} to reach {values} times the dense {what} (allocation: {own.allocation}{refit});"
    if own.widths is not None:
        return f"- prune to the widths in prune.widths{refit};"
    if own.allocation != "search":
        return ""
    nats = f"{own.entropy_increase:g} nats of entropy"
    return f"- find the smallest width of each block that adds at most {nats} (search: {own.search}{refit});"


def _measure(config: PruneConfig) -> str:
    count = config.data.num_val_samples
    images = "all held-out images" if count is None else f"{count} held-out images"
    return f"- measure the result on {images}, and write it to {config.output.dir}/."

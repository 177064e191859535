"""The options of eval_efficiency.py and eval_speed.py."""

from dataclasses import dataclass
from typing import Literal, get_args

from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.dataset_files import NEEDS, Task
from amp.evaluation.options.model import ModelOptions, batches_of, read_model_options, workers
from amp.run.options import check_writable, count, option

Number = Literal["fp32", "bf16", "fp16"]
Mode = Literal["eager", "compiled"]


@dataclass(frozen=True, kw_only=True)
class EfficiencyOptions(ModelOptions):
    """Of eval_efficiency.py."""

    meta: bool = option(
        "only count parameters and FLOPs, without weights; measure no speed (default: %(default)s)",
        False,
        action="store_true",
    )
    batch_size: int | None = count("images per batch when timing (default: 64 on CUDA, 4 on CPU)", None, least=1)
    precisions: tuple[Number, ...] = option(
        "precisions to time (default: bf16 on CUDA, fp32 on CPU)", (), nargs="+", choices=get_args(Number)
    )
    modes: tuple[Mode, ...] = option(
        "blocks as they are, or compiled with torch.compile, which first takes minutes (default: eager)",
        ("eager",),
        nargs="+",
        choices=get_args(Mode),
    )
    num_rounds: int = count("most batches to time, after the warm-up", 50, least=3)
    seconds: int = count("time for all measurements together; each takes at least three batches", 4, least=1)
    json: str | None = option("file to write the numbers to (default: none)", None, aside=True, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(ModelOptions):
    """Of eval_speed.py."""

    batch_size: int = batches_of(64)
    task: Task = option("the task to evaluate", "zeroshot_classification", choices=[*NEEDS])
    dataset: str = option("name of a clip_benchmark dataset, or digit_scenes", metavar="NAME")
    dataset_root: str = option("folder of the dataset", metavar="DIR")
    num_rounds: int = count("timed runs of each, in turn, after a warm-up run", 3, least=1)
    num_workers: int = workers()
    json: str | None = option("file to write the numbers to (default: none)", None, aside=True, metavar="FILE")

    @property
    def benchmark(self) -> Benchmark:
        """The data set."""
        return Benchmark(self.task, self.dataset, self.dataset_root)


def parse_efficiency(description: str | None) -> EfficiencyOptions:
    """The options. Mistakes exit with 2, or raise UserError where --json cannot be written."""
    _, values = read_model_options(EfficiencyOptions, description)
    if values["json"]:
        check_writable("--json", values["json"])
    return EfficiencyOptions(**values)


def parse_speed(description: str | None) -> SpeedOptions:
    """The options. Mistakes exit with 2."""
    parser, values = read_model_options(SpeedOptions, description)
    if "/" in values["dataset"]:
        parser.error(f"argument --dataset: {values['dataset']} is a stream; give a dataset whose images are in folders")
    return SpeedOptions(**values)

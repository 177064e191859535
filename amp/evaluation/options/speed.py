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
        "count on meta tensors, measure no throughput (default: %(default)s)", False, action="store_true"
    )
    batch_size: int | None = count("images in a batch of the throughput (default: 64 on CUDA, 4 on CPU)", None, least=1)
    precisions: tuple[Number, ...] = option(
        "of the weights (default: bf16 on CUDA, fp32 on CPU)", (), nargs="+", choices=get_args(Number)
    )
    modes: tuple[Mode, ...] = option(
        "blocks as they are, or compiled by torch.compile, which takes its time first (default: eager)",
        ("eager",),
        nargs="+",
        choices=get_args(Mode),
    )
    num_rounds: int = count("batches measured at most, after those to warm up", 50, least=3)
    seconds: int = count("of measuring, shared by all that is measured; three batches of each at least", 4, least=1)
    json: str | None = option("write the numbers here (default: nowhere)", None, aside=True, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(ModelOptions):
    """Of eval_speed.py."""

    batch_size: int = batches_of(64)
    task: Task = option("what is measured", "zeroshot_classification", choices=[*NEEDS])
    dataset: str = option("clip_benchmark's name of it, or digit_scenes", metavar="NAME")
    dataset_root: str = option("folder of the dataset", metavar="DIR")
    num_rounds: int = count("runs of each, by turns, after one to warm up", 3, least=1)
    num_workers: int = workers()
    json: str | None = option("write the numbers here (default: nowhere)", None, aside=True, metavar="FILE")

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
        parser.error(f"argument --dataset: {values['dataset']} is a stream; name one whose images lie in folders")
    return SpeedOptions(**values)

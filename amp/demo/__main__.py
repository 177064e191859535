"""The whole pipeline on the digit scenes, by the commands that a user would type: `amp demo`, or `make demo`."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from amp.demo import CHECKOUT, CONFIGS, MODEL
from amp.errors import UserError
from amp.run.console import run_script
from amp.run.files import prepare_output
from amp.run.sealed import read_json, write_json
from amp.settings.base import Parser, at_least

HOME = Path("out/demo")
PRUNE = str(CONFIGS / "demo" / "prune.yaml")
DISTILL = str(CONFIGS / "demo" / "distill.yaml")
DENSE_WEIGHTS = ("model__pretrained", "teacher__pretrained")
TASKS = ("zeroshot_classification", "zeroshot_retrieval")


class Demo:
    """Paths of one demo, and the commands run in it. Commands are shown as they would be typed.

    Args:
        home: folder of everything the demo makes; other than out/demo, the configs' paths are overridden.
        steps: training steps of the dense model.
    """

    def __init__(self, home: Path, steps: int) -> None:
        self.home = home
        self.steps = steps
        self.dense = home / "dense" / "model.safetensors"
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *words: str, processes: int = 0) -> None:
        """One command, a module and its words; its seconds are added to the stage. Raises UserError if it fails."""
        launcher = ["torchrun", f"--nproc_per_node={processes}", "-m"] if processes else ["python", "-m"]
        shown = words if words[0] == "amp" and not processes else (*launcher, *words)
        print(f"\n$ {shlex.join(shown)}", flush=True)
        module = ["-m", "torch.distributed.run", "--standalone", launcher[1]] if processes else []
        started = time.monotonic()
        # So small a model loses more to threads that wait for each other than it gains.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        command = [sys.executable, *module, "-m", *words]
        code = subprocess.run(command, check=False, env=environment).returncode
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started
        if code:
            raise UserError("demo", f"{shlex.join(words[:2])} ended with exit code {code}, see above")

    def overrides(self, **settings: str | Path) -> list[str]:
        """`--set` for what differs from the configs."""
        return [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]

    def moved(self, **settings: str | Path) -> list[str]:
        """`overrides` of the configs' paths, where the demo is not at its usual place, and of the model's JSON."""
        json = (
            {} if CHECKOUT else {key.replace("pretrained", "name"): MODEL for key in settings if key in DENSE_WEIGHTS}
        )
        return self.overrides(**json, **({} if self.home == HOME else settings))

    def train_dense(self) -> None:
        """Builds the scenes and trains the dense model; later runs of an older dense model are cleared away."""
        if self.dense.exists():
            print(f"reusing the dense model {self.dense}")
            return
        for name in ("amp", "random", "refitted", "distill", "eval"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        words = ["--scenes", str(self.home / "scenes"), "--out", str(self.dense), "--steps", str(self.steps)]
        self.run("dense", "amp.demo.dense", *words)

    def prune(self) -> None:
        """Scores and prunes by entropy; to the same size random neurons, and those that ridge makes the most of."""
        data = self.moved(data__root=self.home / "scenes", model__pretrained=self.dense)
        amp = [*data, *self.moved(output__dir=self.home / "amp")]
        self.run("pruned", "amp", "score", "--config_file", PRUNE, "--frame", "open_clip", *amp)
        self.run("pruned", "amp", "prune", "--config_file", PRUNE, *amp)
        found = read_json(self.home / "amp" / "prune.json")
        chance = [*data, *self.overrides(output__dir=self.home / "random", score__criterion="random")]
        at = self.overrides(prune__widths=str(found["widths"]).replace(" ", ""))
        self.run("random_same_widths", "amp", "score", "--config_file", PRUNE, *chance)
        self.run("random_same_widths", "amp", "prune", "--config_file", PRUNE, *chance, *at)
        refitted = [*data, *self.overrides(output__dir=self.home / "refitted", score__criterion="reconstruction")]
        share = round(found["params"]["pruned"] / found["params"]["dense"], 3)
        to = self.overrides(prune__allocation="global", prune__compensation="ridge", prune__target__params=str(share))
        self.run("refitted", "amp", "score", "--config_file", PRUNE, *refitted)
        self.run("refitted", "amp", "prune", "--config_file", PRUNE, *refitted, *to)

    def distill(self) -> None:
        words = self.moved(
            teacher__pretrained=self.dense,
            student__pretrained=self.home / "amp" / "pruned",
            data__root=self.home / "scenes",
            output__dir=self.home / "distill",
        )
        self.run("distilled", "amp", "distill", "--config_file", DISTILL, "--frame", "open_clip", *words, processes=2)

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """{model: {params, flops, top1, recall1}} of every model."""
        models = {
            "dense": ["--model", str(MODEL), "--pretrained", str(self.dense)],
            "pruned": ["--model", str(self.home / "amp" / "pruned")],
            "random_same_widths": ["--model", str(self.home / "random" / "pruned")],
            "refitted": ["--model", str(self.home / "refitted" / "pruned")],
            "distilled": ["--model", str(self.home / "distill" / "distilled")],
        }
        rows: dict[str, dict[str, Any]] = {}
        for name, words in models.items():
            metrics: dict[str, float] = {}
            for task in TASKS:
                output = self.home / "eval" / f"{name}_{task}.json"
                data = ["--dataset", "digit_scenes", "--dataset_root", str(self.home / "scenes")]
                self.run("evaluation", "amp", "eval", "zsc", *words, "--task", task, *data, "--output", str(output))
                metrics |= read_json(output)["metrics"]
            run, size = ("refitted" if name == "refitted" else "amp"), ("dense" if name == "dense" else "pruned")
            record = read_json(self.home / run / "prune.json")
            rows[name] = {
                "params": record["params"][size],
                "flops": record["flops"][size],
                "top1": metrics["acc1"],
                "recall1": metrics["image_retrieval_recall@1"],
            }
        return rows


def show(demo: Demo, rows: dict[str, dict[str, Any]], seconds: float) -> None:
    """The closing table, summary.json and summary.png."""
    from amp.demo.summary import plot_summary
    from amp.run.tables import human, table

    record = read_json(demo.home / "amp" / "prune.json")
    write_json(demo.home / "summary.json", {**rows, "seconds": round(seconds, 1)})
    plot_summary(record, rows, demo.home / "summary.png")
    lines = [
        [
            name.replace("_", " "),
            human(row["params"]),
            human(row["flops"]),
            f"{row['top1']:.3f}",
            f"{row['recall1']:.3f}",
            f"{demo.seconds[name]:.0f}" if name in demo.seconds else "-",
        ]
        for name, row in rows.items()
    ]
    print("\n" + table(["model", "tower params", "FLOPs", "top-1", "recall@1", "seconds"], lines))
    print("top-1 over 60 classes, recall@1 text to image among 512 scenes; digits that no training saw.")
    print(f"{seconds:.0f} s in all, {demo.seconds['evaluation']:.0f} s of them evaluation.")
    print(f"wrote {demo.home}/summary.json and summary.png; the models are in {demo.home}/*/")


def main() -> None:
    parser = Parser(prog="amp demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=HOME, help="folder of the demo (default: %(default)s)")
    parser.add_argument(
        "--steps", type=at_least(1), default=1500, help="training steps of the dense model (default: 1500)"
    )
    args = parser.parse_args()
    prepare_output(str(args.out))
    started = time.monotonic()
    demo = Demo(args.out, args.steps)
    demo.train_dense()
    demo.prune()
    demo.distill()
    rows = demo.evaluate()
    show(demo, rows, time.monotonic() - started)


if __name__ == "__main__":
    run_script(main)

"""What the demonstration runs: the commands that a user would type, each shown before it runs."""

import csv
import json
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
from amp.run.files import atomic
from amp.run.sealed import read_json, write_json

HOME = Path("out/demo")
PRUNE = str(CONFIGS / "demo" / "prune.yaml")
DISTILL = str(CONFIGS / "demo" / "distill.yaml")
DENSE_WEIGHTS = ("model__pretrained", "teacher__pretrained")
TASKS = ("zeroshot_classification", "zeroshot_retrieval")
RESULTS = ("half", "amp", "random", "refitted", "distill", "eval")
Row = dict[str, Any]


class Demo:
    """Paths of one demo, and the commands run in it.

    Args:
        home: folder of everything the demo makes; other than out/demo, the configs' paths are overridden.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.scenes = home / "scenes"
        self.dense = home / "dense" / "model.safetensors"
        self.trained = home / "dense" / "trained.json"
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
            raise UserError("demo", f"{shlex.join(words[:2])} failed with exit code {code}; its message is above")

    def overrides(self, **settings: str | Path) -> list[str]:
        """`--set` for what differs from the configs."""
        return [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]

    def moved(self, **settings: str | Path) -> list[str]:
        """`overrides` of the configs' paths, where the demo is not at its usual place, and of the model's JSON."""
        json = (
            {} if CHECKOUT else {key.replace("pretrained", "name"): MODEL for key in settings if key in DENSE_WEIGHTS}
        )
        return self.overrides(**json, **({} if self.home == HOME else settings))

    def unpack_dense(self) -> None:
        """Builds the scenes, and writes the trained model that comes with the package where there is none."""
        from amp.data.scenes import build_scenes
        from amp.demo.shipped import write_shipped

        started = time.monotonic()
        build_scenes(self.scenes)
        if self.dense.exists():
            print(f"reusing the dense model {self.dense}", flush=True)
        else:
            self.dense.parent.mkdir(parents=True, exist_ok=True)
            write_shipped(self.dense)
        self.seconds["dense"] = time.monotonic() - started

    def train_dense(self, steps: int) -> None:
        """Builds the scenes and trains the dense model; what was made of an earlier one is cleared away."""
        if self.trained.exists() and self.dense.exists():
            print(f"reusing the dense model {self.dense}", flush=True)
            return
        words = ["--scenes", str(self.scenes), "--out", str(self.dense), "--steps", str(steps)]
        self.run("dense", "amp.demo.dense", *words)
        earlier = [self.home / name for name in RESULTS if (self.home / name).exists()]
        if earlier:
            print(f"removing the results of another dense model: {', '.join(map(str, earlier))}", flush=True)
        for folder in earlier:
            shutil.rmtree(folder)
        write_json(self.trained, {"steps": steps})

    def refit(self, stage: str, folder: Path, params: float) -> None:
        """Prunes to a share of the parameters by the settings that keep most, as the command line does it."""
        dense = ["--model", str(MODEL), "--weights", str(self.dense), "--images", str(self.scenes)]
        self.run(stage, "amp", "prune", *dense, "--params", f"{params:g}", "--output", str(folder))

    def prune_as_published(self) -> None:
        """Scores and prunes by entropy; then random neurons at the same widths, and a refit to the same size."""
        data = self.moved(data__root=self.scenes, model__pretrained=self.dense)
        amp = [*data, *self.moved(output__dir=self.home / "amp")]
        self.run("pruned", "amp", "score", "--config_file", PRUNE, "--frame", "open_clip", *amp)
        self.run("pruned", "amp", "prune", "--config_file", PRUNE, *amp)
        found = read_json(self.home / "amp" / "prune.json")
        chance = [*data, *self.overrides(output__dir=self.home / "random", score__criterion="random")]
        at = self.overrides(prune__widths=str(found["widths"]).replace(" ", ""))
        self.run("random_same_widths", "amp", "score", "--config_file", PRUNE, *chance)
        self.run("random_same_widths", "amp", "prune", "--config_file", PRUNE, *chance, *at)
        self.refit("refitted", self.home / "refitted", round(found["params"]["pruned"] / found["params"]["dense"], 3))

    def distill(self) -> None:
        """Distils what was pruned as published, on two processes."""
        words = self.moved(
            teacher__pretrained=self.dense,
            student__pretrained=self.home / "amp" / "pruned",
            data__root=self.scenes,
            output__dir=self.home / "distill",
        )
        self.run("distilled", "amp", "distill", "--config_file", DISTILL, "--frame", "open_clip", *words, processes=2)

    def compare(self, folder: Path) -> dict[str, Row]:
        """{model: {params, flops, top1, recall1}}: a pruned folder beside the dense model, on digits not trained on."""
        from amp.data.scenes import CLASS_NAMES

        texts = {name: self.home / name for name in ("classes.txt", "templates.txt", "captions.csv")}
        texts["classes.txt"].write_text("".join(f"{name}\n" for name in CLASS_NAMES))
        texts["templates.txt"].write_text("a {c}\n")
        coco = json.loads((self.scenes / "annotations" / "captions_pairs.json").read_text())
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        with atomic(texts["captions.csv"]) as partial, partial.open("w", newline="") as file:
            captions = [[names[row["image_id"]], row["caption"]] for row in coco["annotations"]]
            csv.writer(file, lineterminator="\n").writerows([["file", "caption"], *captions])
        output = folder / "compare.json"
        classes = ["--dataset_root", str(self.scenes / "test"), "--classnames", str(texts["classes.txt"])]
        words = [*classes, "--templates", str(texts["templates.txt"]), "--images", str(self.scenes / "pairs")]
        words += ["--captions", str(texts["captions.csv"]), "--tasks", "zeroshot", "retrieval", "--output", str(output)]
        self.run("evaluation", "amp", "eval", "compare", str(folder / "pruned"), *words)
        record = read_json(output)
        rows = {}
        for name, side in (("dense", "dense"), ("refitted", "pruned")):
            sizes, metrics = record["sizes"][side], record["metrics"][side]
            metrics = metrics["zeroshot"] | metrics["retrieval"]
            rows[name] = _row(sizes["params"], sizes["flops"], metrics)
        return rows

    def evaluate(self) -> dict[str, Row]:
        """{model: {params, flops, top1, recall1}} of every model."""
        models = {
            "dense": ["--model", str(MODEL), "--pretrained", str(self.dense)],
            "pruned": ["--model", str(self.home / "amp" / "pruned")],
            "random_same_widths": ["--model", str(self.home / "random" / "pruned")],
            "refitted": ["--model", str(self.home / "refitted" / "pruned")],
            "distilled": ["--model", str(self.home / "distill" / "distilled")],
        }
        rows: dict[str, Row] = {}
        for name, words in models.items():
            metrics: dict[str, float] = {}
            for task in TASKS:
                output = self.home / "eval" / f"{name}_{task}.json"
                data = ["--dataset", "digit_scenes", "--dataset_root", str(self.scenes)]
                self.run("evaluation", "amp", "eval", "zsc", *words, "--task", task, *data, "--output", str(output))
                metrics |= read_json(output)["metrics"]
            run, size = ("refitted" if name == "refitted" else "amp"), ("dense" if name == "dense" else "pruned")
            record = read_json(self.home / run / "prune.json")
            rows[name] = _row(record["params"][size], record["flops"][size], metrics)
        return rows


def _row(params: int, flops: int, metrics: dict[str, float]) -> Row:
    return {
        "params": params,
        "flops": flops,
        "top1": metrics["acc1"],
        "recall1": metrics["image_retrieval_recall@1"],
    }

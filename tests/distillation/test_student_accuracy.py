"""An accuracy while a student trains: that of the finished model, on any number of processes, and after a resume."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, refusal
from helpers.hf_models import DUAL, add_clip_tokenizer, settings, write
from processes.distil_many import prepare
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from amp.data.scenes import CLASS_NAMES, build_scenes
from amp.distillation import Trainer
from amp.errors import UserError
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.knn import Featurizer, open_images
from amp.evaluation.sharding import ShardedBatches
from amp.evaluation.student import build_metric, check_metric, outside_projection
from amp.evaluation.zeroshot import Evaluator
from amp.models.folder import load_tower, read_folder_config, save_tower
from amp.run.sealed import read_json, write_tensors
from amp.run.world import World, among
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.reading.yaml_files import load_config
from amp.towers import build_tower

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]
NAMES = {"knn": "val_knn", "zeroshot": "val_acc1"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 test scenes of 60 classes, 60 held-out ones of two."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    build_scenes(root, num_train=90, num_val=60, num_test=150, num_pairs=8)
    return root


@pytest.fixture
def clip_yaml(distill_yaml: Path, tmp_path: Path, scenes: Path) -> Path:
    """The golden distillation, of a model that knows the classes: a class's embedding is the mean of its images'."""
    config = json.loads((GOLDEN / "tiny-clip.json").read_text())
    config["text_cfg"] |= {"vocab_size": 49408, "context_length": 12, "width": 64}
    (tmp_path / "clip.json").write_text(json.dumps(config))
    dense = build_tower(ModelSettings(frame="open_clip", name=str(tmp_path / "clip.json")))
    dense.visual.load_state_dict(
        {
            name.removeprefix("visual."): tensor
            for name, tensor in load_file(GOLDEN / "tiny-clip.safetensors").items()
            if name.startswith("visual.")
        }
    )
    images = ImageFolder(str(scenes / "test"), dense.transform)
    embedding_BE = F.normalize(dense.visual(torch.stack([image for image, _ in images])), dim=1)
    means_CE = torch.stack([embedding_BE[torch.tensor(images.targets) == c].mean(0) for c in range(len(CLASS_NAMES))])
    model: Any = dense.model
    projection, model.text_projection = model.text_projection, None
    texts_CD = model.encode_text(dense.make_tokenizer()([f"a {name}" for name in CLASS_NAMES]))
    projection.copy_(torch.linalg.lstsq(texts_CD, means_CE - means_CE.mean(0)).solution)
    model.text_projection = projection
    write_tensors(tmp_path / "clip.safetensors", dense.model.state_dict())
    kept = read_folder_config(tmp_path / "student").kept
    assert kept is not None
    for slot, indices in zip(dense.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    shutil.rmtree(tmp_path / "student")
    save_tower(dense, kept, {}, tmp_path / "student")
    path = tmp_path / "clip.yaml"
    path.write_text(distill_yaml.read_text().replace(f"{GOLDEN}/tiny-clip", f"{tmp_path}/clip"))
    return path


@pytest.fixture
def words(scenes: Path) -> Callable[[str], list[str]]:
    """words(metric): settings that measure it every 8 steps, on fewer images than there are."""

    def of_metric(metric: str) -> list[str]:
        settings = [f"eval.metric={metric}", f"eval.root={scenes}", "eval.batch_size=16", "output.eval_every=8"]
        counts = {"knn": ["eval.num_samples=50", "eval.num_train_samples=80", "eval.k=10"]}
        return settings + counts.get(metric, ["eval.num_samples=100", "eval.name=digit_scenes"])

    return of_metric


def _run(call: Call, yaml: Path, *words: str) -> tuple[int, str, str]:
    return call("distill.py", "--config_file", yaml, *(part for word in words for part in ("--set", word)))


def _seen(folder: Path, name: str) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record[name] for record in records if name in record}


def _accuracy(metric: str, folder: Path, scenes: Path) -> float:
    """Of a finished model, on the same images, without anything of a training."""
    tower = load_tower(folder)
    if metric == "knn":
        train, val = (open_images("--x", str(scenes / split), tower.transform) for split in ("train", "val"))
        train = torch.utils.data.Subset(train, [i * 90 // 80 for i in range(80)])
        val = torch.utils.data.Subset(val, [i * 60 // 50 for i in range(50)])
        return Featurizer(tower, 16, 0).accuracies(train, val)["knn10"]
    dataset = Benchmark("zeroshot_classification", "digit_scenes", str(scenes)).build(tower.transform)
    evaluator = Evaluator(tower, 16, num_workers=0)
    classifier_DC = evaluator.text_classifier(dataset.classes, dataset.templates)
    part = torch.utils.data.Subset(dataset, [i * 150 // 100 for i in range(100)])
    return evaluator.classify(part, classifier_DC)[0]["acc1"]


@pytest.mark.parametrize("metric", ["knn", "zeroshot"])
def test_it_is_measured_on_the_way_and_the_best_checkpoint_stays(
    metric: str, clip_yaml: Path, tmp_path: Path, scenes: Path, words: Any, call: Call
) -> None:
    code, out, err = _run(call, clip_yaml, *words(metric), "output.keep=1")
    assert code == 0, err
    seen = _seen(tmp_path / "out", NAMES[metric])
    assert list(seen) == [7, 15, 19] == list(_seen(tmp_path / "out", "val_loss"))
    assert seen[19] == _accuracy(metric, tmp_path / "out" / "distilled", scenes)
    before = _accuracy(metric, tmp_path / "student", scenes)
    assert f"student {before:.4f} before the first step" in out
    first = max(seen, key=lambda step: seen[step]) + 1
    names = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert names == {f"step_{first:07d}", "step_0000020"}
    state = json.loads((tmp_path / "out" / "checkpoints" / "step_0000020" / "state.json").read_text())
    assert (state["best"]["step"], state["best"][NAMES[metric]]) == (first, max(seen.values()))


def test_resumed_equals_uninterrupted(
    clip_yaml: Path, tmp_path: Path, words: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*words("zeroshot"), "output.save_every=3", "output.eval_every=4"]
    assert _run(call, clip_yaml, *settings, f"output.dir={tmp_path}/whole")[0] == 0
    step = Trainer.train_step

    def killed(self: Trainer, *given: Any, **named: Any) -> Any:
        if self.step == 14:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed)
        assert _run(call, clip_yaml, *settings)[0] == 130
    code, out, _ = _run(call, clip_yaml, *settings)
    assert (code, "resuming after step 12 of 20" in out, "before the first step" in out) == (0, True, False)
    for file in ("log.jsonl", "distilled/model.safetensors", "distilled/config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    last = [read_json(tmp_path / name / "checkpoints/step_0000020/state.json") for name in ("out", "whole")]
    for state in last:
        del state["files_sha256"]  # torch writes the tensors of a checkpoint in any order
    assert last[0] == last[1]


def test_two_processes_measure_what_one_measures(clip_yaml: Path, tmp_path: Path, words: Any, launch: Any) -> None:
    runs = {}
    for metric in NAMES:
        settings = [*words(metric), "optim.epochs=2", "eval.batch_size=20"]  # 3 or 5 batches, for 2 processes
        prepare(load_config(DistillConfig, clip_yaml, [*settings, f"output.dir={tmp_path}/{metric}"])).train()
        runs |= {f"{metric}_{kind}": ",".join([*settings, f"optim.parallel={kind}"]) for kind in ("ddp", "fsdp")}
    done = launch(
        2, "tests/processes/distil_many.py", clip_yaml, *(f"{name}:{settings}" for name, settings in runs.items())
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs:
        metric = run.partition("_")[0]
        one, two = (_seen(tmp_path / name, NAMES[metric]) for name in (metric, run))
        assert list(one) == [7]
        assert one == two


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_in_step_every_process_gets_as_many_batches_and_all_of_them_once(size: int) -> None:
    for count in (1, 5, 20, 21, 30):
        spans = []
        for rank in range(size):
            with among(World(rank, size, torch.device("cpu"))):
                spans.append(ShardedBatches(5, 0, in_step=True).spans(count))
        assert len({len(own) for own in spans}) == 1
        merged = {index: span for own in spans for index, span in own.items()}
        assert merged == ShardedBatches(5, 0).spans(count)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_low_precision_measures_too(
    precision: str, clip_yaml: Path, tmp_path: Path, words: Any, call: Call, scenes: Path
) -> None:
    code, _, err = _run(call, clip_yaml, *words("zeroshot"), "optim.epochs=2", f"optim.precision={precision}")
    assert code == 0, err
    found = _seen(tmp_path / "out", "val_acc1")[7]
    assert found == pytest.approx(_accuracy("zeroshot", tmp_path / "out" / "distilled", scenes), abs=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_projection_outside_the_tower(
    precision: str, distill_yaml: Path, tmp_path: Path, words: Any, call: Call, scenes: Path
) -> None:
    write(tmp_path / "clip", "CLIPModel", DUAL)
    add_clip_tokenizer(tmp_path / "clip")
    dense = build_tower(settings(tmp_path / "clip"))
    save_tower(dense, [list(range(width)) for width in dense.widths], {}, tmp_path / "same")
    more = ["teacher.frame=hf", f"teacher.name={tmp_path}/clip", "teacher.pretrained=null", "optim.epochs=2"]
    more += [f"student.pretrained={tmp_path}/same", f"optim.precision={precision}"]
    code, out, err = _run(call, distill_yaml, *words("zeroshot"), *more)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("val_acc1: "))
    teacher, student = (float(word) for word in line.split() if word[0].isdigit())
    assert teacher == student or precision == "bf16"
    found = _seen(tmp_path / "out", "val_acc1")[7]
    assert found == pytest.approx(_accuracy("zeroshot", tmp_path / "out" / "distilled", scenes), abs=0.06)


def test_what_an_embedding_takes_outside_the_tower(distill_yaml: Path, tmp_path: Path) -> None:
    assert outside_projection(load_config(DistillConfig, distill_yaml)) == []
    write(tmp_path / "clip", "CLIPModel", DUAL)
    config = load_config(DistillConfig, distill_yaml, ["teacher.frame=hf", f"teacher.name={tmp_path}/clip"])
    assert outside_projection(config) == ["visual_projection.weight"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["eval.root=nowhere", "eval.metric=knn"], "eval.root: nowhere/train: no such folder"),
        (["eval.metric=zeroshot", "eval.name=digit_scene"], "eval.name: no 'digit_scene'; did you mean 'digit_scenes'"),
        (["eval.metric=zeroshot", "eval.name=imagenet-r", "eval.root=docs"], "eval.root: docs: 0 class folders"),
        (["eval.metric=zeroshot", "eval.name=wds/cars"], "eval.name: wds/cars is a stream"),
        (["eval.metric=zeroshot", "eval.name=mscoco_captions"], "eval.name: mscoco_captions belongs to"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(distill_yaml: Path, more: list[str], message: str) -> None:
    assert message in refusal(lambda: check_metric(load_config(DistillConfig, distill_yaml, more)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["eval.metric=zeroshot"], "name: missing; metric zeroshot needs"),
        (["eval.metric=knn", "eval.num_train_samples=5"], "num_train_samples 5 is less than k 20"),
        (["eval.metric=knn", "output.eval_every=0"], "output.eval_every 0: eval.metric knn would never be measured"),
        (["eval.metric=acc"], "eval.metric"),
    ],
)
def test_settings_that_make_no_sense(distill_yaml: Path, more: list[str], message: str) -> None:
    assert message in refusal(lambda: load_config(DistillConfig, distill_yaml, more))


def test_a_teacher_without_text_is_refused_and_so_are_too_few_images(
    distill_yaml: Path, words: Any, tower: Any
) -> None:
    from dataclasses import replace

    config = load_config(DistillConfig, distill_yaml, words("zeroshot"))
    silent = replace(tower, encode_text=None)
    message = refusal(lambda: build_metric(config, silent, tower))
    assert f"eval.metric: zeroshot: {GOLDEN}/tiny-clip.json has no text tower" in message
    config = load_config(DistillConfig, distill_yaml, [*words("knn"), "eval.k=91", "eval.num_train_samples=99"])
    with pytest.raises(UserError, match=r"eval.root: .*/train: 90 images are fewer than eval.k \(91\)"):
        build_metric(config, tower, tower)


def test_a_broken_image_is_named_before_the_first_step(
    distill_yaml: Path, tmp_path: Path, words: Any, scenes: Path, call: Call
) -> None:
    build_scenes(tmp_path / "scenes", num_train=90, num_val=60, num_test=150, num_pairs=8)
    broken = sorted((tmp_path / "scenes" / "val").rglob("*.png"))[0]
    broken.write_bytes(b"none")
    code, _, err = _run(call, distill_yaml, *words("knn"), f"eval.root={tmp_path}/scenes")
    assert (code, f"error: eval.root: {broken}: cannot be read" in err) == (2, True)
    assert not (tmp_path / "out" / "checkpoints").exists()

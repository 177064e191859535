"""Pruned beside dense: a model beside itself, what is left out, every number of processes, every bad call."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, refusal
from helpers.hf_models import VISION, settings, write
from helpers.model_folders import random_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from amp.errors import UserError
from amp.evaluation.options import CompareOptions
from amp.evaluation.side_by_side.agreement import agree, same_nearest
from amp.evaluation.side_by_side.models import find_dense, pruned_on
from amp.evaluation.side_by_side.sides import choose_tasks, measure_side, open_data
from amp.models.folder import read_folder_config, save_tower
from amp.settings.model import IN_MEMORY, ModelSettings
from amp.towers import Tower, build_tower

SCRIPT = "eval/eval_models.py"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight images, with a caption each."""
    root = tmp_path_factory.mktemp("pictures")
    rows = ["file,caption"]
    for label, name in enumerate(("big_cat", "dog")):
        (root / "own" / name).mkdir(parents=True)
        for index in range(8):
            pixels = np.random.default_rng(8 * label + index).integers(0, 200, (4, 4, 3)) + 40 * label
            Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(root / "own" / name / f"{index}.png")
            rows.append(f"{name}/{index}.png,a {name} number {index}")
    (root / "captions.csv").write_text("\n".join(rows))
    return root


def save(model: ModelSettings, folder: Path, share: float) -> Path:
    """A folder of the model with the first neurons of each block, which says what was pruned."""
    tower = build_tower(model)
    kept = [range(int(share * slot.hidden_width)) for slot in tower.slots]
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    recorded = model.model_dump(mode="json", include={"frame", "name", "pretrained"})
    save_tower(tower, [[*indices] for indices in kept], {"settings": {"model": recorded}}, folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    name, pretrained = random_clip(tmp_path_factory.mktemp("clip"), "tiny")
    return ModelSettings(frame="open_clip", name=name, pretrained=pretrained)


@pytest.mark.parametrize("chunk_size", [1, 2**20])
def test_the_nearest_is_that_of_a_search_by_hand(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    dense, other = (F.normalize(torch.randn(40, width, generator=generator), dim=1) for width in (6, 5))
    pruned = F.normalize(dense + 0.3 * torch.randn(40, 6, generator=generator), dim=1)

    def nearest(features: torch.Tensor) -> list[int]:
        similar = (features.double() @ features.double().t()).fill_diagonal_(-2)
        return [row.index(max(row)) for row in similar.tolist()]

    for features in (pruned, other):
        expected = sum(a == b for a, b in zip(nearest(dense), nearest(features), strict=True)) / 40
        assert same_nearest(dense, features, chunk_size) == expected
    copies = torch.cat([dense[:9], dense[:9], dense[:9]])  # each image has two as near as can be
    assert same_nearest(copies, copies[torch.arange(27)], chunk_size) == 1.0
    assert same_nearest(dense[:1], dense[:1]) is None


def test_agreement_of_features_as_wide_and_not() -> None:
    features_ND = F.normalize(torch.eye(4)[:, :3] + 0.1, dim=1)
    turned = agree([features_ND, torch.arange(4)], [-features_ND, torch.tensor([0, 1, 0, 0])])
    assert turned["cosine_mean"] == turned["cosine_min"] == pytest.approx(-1)
    assert turned["same_top1"] == 0.5
    other = agree([features_ND], [features_ND[:, :2]])
    assert (other["cosine_mean"], other["same_top1"]) == (None, None)


@pytest.mark.slow
def test_a_model_beside_itself_agrees_in_everything(
    tmp_path: Path, clip: ModelSettings, pictures: Path, call: Any
) -> None:
    folder = save(clip, tmp_path / "out" / "pruned", 1.0)
    words = [folder, "--images", pictures / "own", "--dataset_root", pictures / "own", "--num_workers", 0]
    words += ["--captions", pictures / "captions.csv", "--output", tmp_path / "r.json"]
    code, out, err = call(SCRIPT, *words)
    assert code == 0, err
    record = json.loads((tmp_path / "r.json").read_text())
    agreement = record["agreement"]
    assert [agreement[f"cosine_{key}"] for key in ("mean", "p5", "min")] == pytest.approx([1, 1, 1], abs=1e-6)
    assert (agreement["same_nearest"], agreement["same_top1"], record["head"]) == (1, 1, "zero-shot, 2 classes")
    assert record["metrics"]["dense"] == record["metrics"]["pruned"]
    assert list(record["metrics"]["dense"]) == ["zeroshot", "retrieval", "knn", "probe"]
    assert record["sizes"]["dense"] == record["sizes"]["pruned"]
    assert "skipped top1: " in out
    assert (record["num_images"], record["num_test_images"], record["num_train_images"]) == (16, 4, 12)
    assert call(SCRIPT, *words)[1].startswith(f"already done: {tmp_path}/r.json")


def test_two_processes_give_the_same(
    tmp_path: Path, clip: ModelSettings, pictures: Path, call: Any, launch: Any
) -> None:
    folder = save(clip, tmp_path / "out" / "pruned", 0.3)
    words = [folder, "--images", pictures, "--num_workers", 0, "--batch_size", 3, "--num_images", 10]
    words += ["--dataset_root", pictures / "own", "--tasks", "knn", "probe"]
    run = launch(2, SCRIPT, *words, "--output", tmp_path / "two.json")
    assert run.returncode == 0, run.stderr
    code, out, err = call(SCRIPT, *words, "--output", tmp_path / "one.json")
    assert code == 0, err
    assert "agreement is measured on 10 of 16 images, spread evenly" in out
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert all(one[key] == two[key] for key in ("agreement", "metrics", "sizes", "num_images", "settings"))
    assert 0 < one["agreement"]["cosine_min"] <= one["agreement"]["cosine_mean"] < 1
    assert one["sizes"]["pruned"]["params"] < one["sizes"]["dense"]["params"]
    assert one["agreement"]["same_top1"] is not None


@pytest.mark.slow
def test_images_alone_are_enough(tmp_path: Path, clip: ModelSettings, pictures: Path, call: Any) -> None:
    folder = save(clip, tmp_path / "pruned", 0.3)
    code, out, err = call(SCRIPT, folder, "--images", pictures, "--num_workers", 0, "--output", tmp_path / "r.json")
    assert code == 0, err
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["metrics"] == {"dense": {}, "pruned": {}}
    assert (record["agreement"]["same_top1"], record["head"], record["num_images"]) == (None, None, 16)
    assert "| agreement of pruned and dense on 16 images" in out


@pytest.mark.slow
def test_random_weights_are_told_each_time(tmp_path: Path, clip: ModelSettings, pictures: Path, call: Any) -> None:
    folder = save(clip, tmp_path / "pruned", 0.3)
    words = [folder, "--images", pictures, "--num_workers", 0, "--pretrained", "random"]
    code, out, err = call(SCRIPT, *words, "--output", tmp_path / "r.json")
    assert code == 0, err
    note = f"note: the dense {clip.name} has random weights; use --pretrained to give others"
    assert note in out.splitlines()
    assert [line.partition(":")[0] for line in err.splitlines() if "agreement" in line] == [
        "agreement (pruned model)",
        "agreement (dense model)",
    ]
    again = call(SCRIPT, *words, "--output", tmp_path / "r.json")[1]
    assert again.splitlines()[:2] == [f"already done: {tmp_path}/r.json", note]
    other = [folder, "--images", pictures, "--num_workers", 0, "--pretrained", "random", "--dense", "ViT-B-33"]
    assert "--dense: " in call(SCRIPT, *other, "--output", tmp_path / "o.json")[2]


@pytest.mark.slow
def test_weights_that_the_model_was_not_pruned_from_are_told(
    tmp_path: Path, clip: ModelSettings, pictures: Path, call: Any
) -> None:
    """Those that it was pruned from are known by any weight that is theirs to bf16, as after a distillation."""
    whole = load_file(str(clip.pretrained))
    own = {name: weight if name == "visual.proj" else 1.1 * weight for name, weight in whole.items()}
    for name, state in {"tuned": {name: 1.01 * weight for name, weight in whole.items()}, "distilled": own}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    folder = save(clip.model_copy(update={"precision": "bf16"}), tmp_path / "pruned", 0.3)
    for name, told in {None: 0, "tuned": 1, "distilled": 0}.items():
        words = [folder, "--images", pictures, "--num_workers", 0, "--num_images", 4]
        words += [] if name is None else ["--pretrained", tmp_path / f"{name}.safetensors"]
        code, out, err = call(SCRIPT, *words, "--output", tmp_path / f"{name}.json")
        assert code == 0, err
        assert out.count(f"note: {folder} was not pruned from these weights of ") == told, name


@pytest.mark.slow
def test_a_classifier_is_compared_by_its_own_top1(tmp_path: Path, pictures: Path, call: Any) -> None:
    write(tmp_path / "hf", "ViTForImageClassification", {**VISION, "id2label": {"0": "dog", "1": "big cat"}})
    folder = save(settings(tmp_path / "hf"), tmp_path / "pruned", 0.9)
    words = [folder, "--dataset_root", pictures / "own", "--tasks", "top1", "--num_workers", 0]
    code, _, err = call(SCRIPT, *words, "--output", tmp_path / "r.json")
    assert code == 0, err
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["head"] == "its classifier of 2 classes"
    assert list(record["metrics"]["pruned"]) == ["top1"]
    assert record["num_images"] == 16
    assert 0 <= record["agreement"]["same_top1"] <= 1


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path, golden_model: ModelSettings, pictures: Path, call: Any) -> None:
    folder = save(golden_model, tmp_path / "pruned", 0.5)
    own, images = ["--dataset_root", pictures / "own"], ["--images", pictures / "own"]
    for words, said in (
        ([folder], "give --images DIR (any folder of images) or --dataset_root DIR"),
        ([folder, *images, "--tasks", "knn"], "--tasks: knn needs --dataset_root"),
        ([folder, *own, "--captions", pictures / "captions.csv"], "--captions: needs --images"),
        ([folder, *images, "--held_out", 3], "--held_out: needs --dataset_root"),
        ([folder, "--images", tmp_path / "none"], "--images: "),
        ([tmp_path, *images], "holds no config.json"),
        ([folder, *images, "--dense", "ViT-B-33"], "--dense: "),
        ([folder, *images, "--pretrained", tmp_path / "none.pt"], "--pretrained: "),
        ([folder, *own, "--tasks", "top1"], "has no classifier"),
        (
            [folder, *own, "--tasks", "zeroshot"],
            "its tokenizer gives the id 49407, but the text tower knows only 512 ids",
        ),
    ):
        code, _, err = call(SCRIPT, *words, "--num_workers", 0, "--output", tmp_path / "r.json")
        assert (code, said in err.splitlines()[-1], (tmp_path / "r.json").exists()) == (2, True, False), (words, err)


@pytest.mark.slow
def test_a_folder_that_does_not_tell_its_weights(tmp_path: Path, folder: Path, pictures: Path, call: Any) -> None:
    words = [folder, "--images", pictures / "own", "--num_workers", 0, "--output", tmp_path / "r.json"]
    code, _, err = call(SCRIPT, *words)
    assert (code, "does not record the weights of the dense " in err) == (2, True)
    assert call(SCRIPT, *words, "--pretrained", GOLDEN / "tiny-clip.safetensors")[0] == 0


@pytest.mark.slow
def test_a_model_that_was_an_object_tells_no_weights(tmp_path: Path) -> None:
    tower = build_tower(ModelSettings(frame="timm", name="test_vit"))
    kept = [range(width) for width in tower.widths]
    save_tower(tower, kept, {"settings": {"model": {"name": IN_MEMORY, "pretrained": None}}}, tmp_path / "pruned")
    words = {"folder": str(tmp_path / "pruned"), "images": str(tmp_path)}
    with pytest.raises(UserError, match=r"--pretrained: missing; .* does not record the weights of the dense test_vit"):
        find_dense(CompareOptions(**words))
    assert find_dense(CompareOptions(**words, pretrained="r160_in1k")).pretrained == "r160_in1k"


def test_a_tag_that_the_dense_model_lacks_is_told_before_it_is_built(tmp_path: Path) -> None:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    folder = save(ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=size), tmp_path / "pruned", 0.5)
    options = CompareOptions(folder=str(folder), images="x", pretrained="augreg_in21")
    said = refusal(lambda: find_dense(options).open(options, "meta"))
    assert said.startswith("--pretrained: 'augreg_in21' is neither an existing file nor a tag of vit_tiny_patch16_224")


def test_images_that_the_pruning_saw_are_known(tmp_path: Path, clip: ModelSettings) -> None:
    tower = build_tower(clip)
    kept = [range(slot.hidden_width) for slot in tower.slots]
    seen, other = tmp_path / "seen", tmp_path / "seen_not"
    for folder in (seen / "val", other):
        folder.mkdir(parents=True)
    save_tower(tower, [[*own] for own in kept], {"settings": {"data": {"root": str(seen)}}}, tmp_path / "pruned")
    for root, told in {seen: True, seen / "val": True, tmp_path: True, other: False}.items():
        assert pruned_on(read_folder_config(tmp_path / "pruned"), (None, str(root))) == (str(root) if told else None)


def test_the_images_of_the_estimate_are_those_that_pass_a_model(clip: ModelSettings, pictures: Path) -> None:
    own, captions = str(pictures / "own"), str(pictures / "captions.csv")
    options = CompareOptions(folder="x", images=own, dataset_root=own, captions=captions, num_workers=0)
    tower, told, passed = build_tower(clip), [], []

    def noted(image: Image.Image) -> torch.Tensor:
        passed.append(image)
        return tower.transform(image)

    counting = replace(tower, transform=noted)
    data = open_data(options, noted)
    tasks = choose_tasks(data, counting)
    assert tasks == ["zeroshot", "retrieval", "knn", "probe"]
    measure_side(counting, data, tasks, True, look=lambda _, images: told.append(sum(map(len, images))))
    assert told == [len(passed)] == [16 + 4 + 16 + 16]


def test_captions_are_read_once_for_both_models(pictures: Path, tower: Tower) -> None:
    options = CompareOptions(folder="x", images=str(pictures / "own"), captions=str(pictures / "captions.csv"))
    data = open_data(options, tower.transform)
    one = data.pairs.seen_by(tower.transform)
    (pictures / "captions.csv").rename(pictures / "gone.csv")
    try:
        other = data.pairs.seen_by(len)
    finally:
        (pictures / "gone.csv").rename(pictures / "captions.csv")
    assert (one.samples, one.transform, other.transform) == (other.samples, tower.transform, len)
    assert len(one) == 16

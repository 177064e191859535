"""The file of a result: its name, found again, refused where it is of something else; a model under its options."""

from pathlib import Path

import pytest
from conftest import GOLDEN, refusal

from amp.evaluation.options import KnnOptions
from amp.evaluation.results import digest_model, open_evaluation, open_model
from amp.run.files import file_sha256
from amp.run.sealed import read_json, write_json

OPTIONS = KnnOptions(model="m/tiny.json", train_root="train", val_root="val")


def test_a_result_of_an_earlier_version_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by what decided it, whatever the order of its keys and the versions that it holds."""
    monkeypatch.chdir(tmp_path)
    run = open_evaluation(OPTIONS, ("data", "knn"), {"model_sha256": "abc", "pretrained_sha256": None})
    assert run.path(run.name) == Path("out/eval/data_knn_tiny_8fb27bbe.json")
    assert run.found(run.name) is None
    settings = {"model": OPTIONS.model, "model_type": None, "pretrained": None, "train_root": "train"}
    settings |= {"val_root": "val", "batch_size": 256, "model_sha256": "abc"}
    record = {"metrics": {"knn10": 0.5}, "settings": settings, "pretrained_sha256": None, "versions": {"torch": "2.0"}}
    write_json(run.path(run.name), record)
    assert run.found(run.name) == record


def test_a_result_holds_what_decided_it(tmp_path: Path) -> None:
    options = KnnOptions(model="m", train_root="train", val_root="val", output=str(tmp_path / "config.json"))
    digests = {"model_sha256": None, "pretrained_sha256": "abc"}
    run = open_evaluation(options, ("data", "knn"), digests, ("torch",), more=1)
    written = run.write(run.name, {"metrics": {}})
    assert read_json(tmp_path / "config.json") == written == run.found(run.name)
    assert list(written) == ["metrics", "settings", "pretrained_sha256", "versions"]
    assert list(written["versions"]) == ["amp", "torch"]
    assert written["settings"] == {**options.decisive(), "model_sha256": None, "more": 1}
    for own, more, said in (
        ({**digests, "pretrained_sha256": "def"}, 1, "before the weights changed"),
        (digests, 2, "with more = 1, but this run has 2"),
    ):
        other = open_evaluation(options, ("data", "knn"), own, more=more)
        message = refusal(lambda other=other: other.found(other.name))
        assert message.startswith(f"--output: {tmp_path} holds another run: config.json was made {said}")


def test_the_files_of_a_model_are_told_by_digest(folder: Path) -> None:
    config, weights = GOLDEN / "tiny-clip.json", GOLDEN / "tiny-clip.safetensors"
    roots = {"train_root": "train", "val_root": "val"}
    dense = digest_model(KnnOptions(model=str(config), pretrained=str(weights), **roots))
    assert dense == {"model_sha256": file_sha256(str(config)), "pretrained_sha256": file_sha256(str(weights))}
    pruned = file_sha256(str(folder / "model.safetensors"))
    for options in (KnnOptions(model=str(folder), **roots), KnnOptions(pretrained=str(folder), **roots)):
        assert digest_model(options)["pretrained_sha256"] == pruned
    assert set(digest_model(KnnOptions(model="ViT-B-32", pretrained="openai", **roots)).values()) == {None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "ViT-B-23"}, "--model: "),
        ({"model": str(GOLDEN / "tiny-clip.json"), "pretrained": "nowhere"}, "--pretrained: 'nowhere'"),
        ({"model": "RN50", "model_type": "timm", "img_size": 64}, "--model: timm knows no 'RN50'"),
    ],
)
def test_a_mistake_in_the_model_stands_under_its_option(given: dict[str, object], said: str) -> None:
    options = KnnOptions(train_root="train", val_root="val", **given)  # type: ignore[arg-type]
    assert refusal(lambda: open_model(options, "fp32", "cpu")).startswith(said)


def test_a_file_inside_of_a_folder_is_no_model(folder: Path) -> None:
    options = KnnOptions(
        model=str(GOLDEN / "tiny-clip.json"), pretrained=f"{folder}/model.safetensors", train_root="a", val_root="b"
    )
    said = f"--pretrained: {folder}/model.safetensors: is one file of a pruned model; give the folder, {folder}"
    assert refusal(lambda: open_model(options, "fp32", "cpu")) == said

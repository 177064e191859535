from pathlib import Path

import pytest

from amp.errors import UserError
from amp.run.options import check_model, check_model_folder, check_output, check_place, check_weights


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("out/run")
    (folder / "pruned").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "pruned" / name).touch()
    return folder


def test_a_path_that_is_no_model_is_told_with_what_is_meant(run: Path) -> None:
    for name in (None, "ViT-B-32", "ViT-B/32", "facebook/dinov2-base", "hf-hub:a/b", f"{run}/pruned"):
        check_model("--model", name)
    for name, said in (
        (
            "out/run",
            "out/run: holds no config.json; expected a pruned/ or distilled/ folder; did you mean out/run/pruned?",
        ),
        ("out/run/prund", "--model: out/run/prund: no such file or folder"),
        ("./model", "--model: ./model: no such file or folder"),
        ("out/run/pruned/model.safetensors", "is one file of a model folder; give the folder, out/run/pruned"),
    ):
        with pytest.raises(UserError) as caught:
            check_model("--model", name)
        assert said in str(caught.value)
    for folder, said in (("nowhere", "nowhere: no such folder"), (f"{run}/pruned/config.json", "is a file")):
        with pytest.raises(UserError, match=said):
            check_model_folder(folder)
    with pytest.raises(UserError, match=r"--pretrained: no.pt: no such file"):
        check_weights("--pretrained", "no.pt")
    check_weights("--pretrained", "laion2b_s34b_b79k")


def test_what_can_be_no_output_is_told_and_nothing_is_written(run: Path) -> None:
    before = sorted(Path().rglob("*"))
    check_place("--output", "new/a.json")
    check_output("new/folder")
    for file, said in (("out", "is a folder"), (f"{run}/pruned/config.json/a.json", "config.json is a file")):
        with pytest.raises(UserError, match=said):
            check_place("--output", file)
    assert sorted(Path().rglob("*")) == before

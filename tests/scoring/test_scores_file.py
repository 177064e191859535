"""Laws of the scores' file: it comes back, foreign files and scores made otherwise are refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from amp.errors import UserError
from amp.run.files import file_sha256
from amp.run.identity import identity
from amp.scoring.scores_file import check_scores, load_scores, save_scores
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config


def some_scores(num_blocks: int = 12) -> list[Tensor]:
    """More blocks than ten, of different widths: names must not be sorted as text."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(4 + block, generator=generator) for block in range(num_blocks)]


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.safetensors"
    header = {"settings": {"model": {"name": "é"}}, "pretrained_sha256": None}
    save_scores(some_scores(), header, path)
    scores, found = load_scores(path)
    assert found == header
    assert [score_H.dtype for score_H in scores] == [torch.float32] * 12
    assert all(torch.equal(a, b) for a, b in zip(scores, some_scores(), strict=True))
    first = path.read_bytes()
    save_scores(some_scores(), header, path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["scores.safetensors"], "a partial file stayed behind"


def foreign(path: Path, kind: str) -> None:
    """Writes a file, or a folder, that holds no scores."""
    save_scores(some_scores(), {}, path)
    whole = path.read_bytes()
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "tensors without header":
        save_file({"score.0": torch.ones(3)}, path)
    elif kind == "header that is no JSON":
        save_file({"score.0": torch.ones(3)}, path, {"amp": "{"})
    elif kind == "header that is no object":
        save_file({"score.0": torch.ones(3)}, path, {"amp": "[1]"})
    elif kind == "a missing block":
        save_file({"score.0": torch.ones(3), "score.2": torch.ones(3)}, path, {"amp": json.dumps({})})
    else:
        contents = {
            "nothing": b"",
            "text": b"hello, this is no tensor file\n" * 9,
            "a pickle": pickle.dumps([1, 2, 3]),
            "half a file": whole[: len(whole) // 2],
            "half a header": whole[:100],
        }
        path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind",
    [
        "nothing",
        "text",
        "a pickle",
        "half a file",
        "half a header",
        "tensors without header",
        "header that is no JSON",
        "header that is no object",
        "a missing block",
        "a folder",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "scores.safetensors"
    foreign(path, kind)
    with pytest.raises(UserError) as caught:
        load_scores(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; run main_score\.py") as caught:
        load_scores(tmp_path / "scores.safetensors")
    assert str(tmp_path / "scores.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.precision=bf16", "model.precision"),
        ("model.kwargs={img_size: 48}", "model.kwargs.img_size"),
        ("model.transform.crop_pct=0.9", "model.transform.crop_pct"),
        ("data.batch_size=16", "data.batch_size"),
        ("data.seed=1", "data.seed"),
        ("data.num_samples=32", "data.num_samples"),
        ("score.inverse_temperature=20.0", "score.inverse_temperature"),
        ("score.absolute=false", "score.absolute"),
    ],
)
def test_check_scores_names_what_differs(prune_yaml: Path, override: str, key: str) -> None:
    plain, changed = load_config(PruneConfig, prune_yaml), load_config(PruneConfig, prune_yaml, [override])
    scored = identity(plain, ("prune",))
    with pytest.raises(UserError) as caught:
        check_scores(scored, identity(changed))
    message = str(caught.value)
    assert message.startswith(f"scores.safetensors: made with {key} = ")
    assert "\n" not in message
    value = override.partition("=")[2]
    assert value in message.lower() or key == "model.kwargs.img_size"


def test_check_scores_notices_other_weights_of_the_same_name(prune_yaml: Path, tmp_path: Path) -> None:
    plain = load_config(PruneConfig, prune_yaml)
    scored = identity(plain, ("prune",))
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, other)
    with pytest.raises(UserError, match="before the weights changed"):
        check_scores(scored, {**identity(plain), "pretrained_sha256": file_sha256(str(other))})


@pytest.mark.parametrize(
    "override", ["prune.search_steps=3", "prune.entropy_increase=0.5", "data.num_workers=2", "output.dir=elsewhere"]
)
def test_check_scores_ignores_what_does_not_decide_scores(prune_yaml: Path, override: str) -> None:
    plain, changed = load_config(PruneConfig, prune_yaml), load_config(PruneConfig, prune_yaml, [override])
    scored = json.loads(json.dumps(identity(plain, ("prune",))))
    check_scores(scored, identity(changed))

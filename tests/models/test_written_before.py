"""Files that an earlier version wrote: its scores, its record, its model folders; they load, and their run is done.

`tests/golden/written_before/` holds two blocks of width 16: the settings of a scoring, a pruning and a distillation,
what they wrote, and the embeddings of `blank()`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, ROOT
from torch import Tensor

import amp
from amp.models.folder import read_folder_config
from amp.run.sealed import read_json
from amp.scoring.scores_file import load_scores

BEFORE = GOLDEN / "written_before"
RUN = BEFORE / "run"


def blank() -> Tensor:
    return torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


@pytest.mark.parametrize("name", ["pruned", "distilled"])
def test_a_model_folder_gives_the_same_embeddings(name: str) -> None:
    model, _, tokenizer = amp.load_pruned(RUN / name)
    expected = torch.tensor(json.loads((BEFORE / "embeddings.json").read_text())[name])
    torch.testing.assert_close(model.encode_image(blank())[0], expected)
    assert tokenizer(["a word"]).shape == (1, 8)
    config = read_folder_config(RUN / name)
    assert config.widths == (6, 6)
    assert config.provenance["settings"]


def test_scores_are_read() -> None:
    scores, header = load_scores(RUN / "scores.safetensors")
    assert [(score.shape, score.dtype) for score in scores] == [((48,), torch.float32)] * 2
    assert header["settings"]["model"]["name"] == "tiny.json"
    kept = read_folder_config(RUN / "pruned").kept
    assert kept is not None
    for score, indices in zip(scores, kept, strict=True):
        assert set(indices) == set(score.topk(6).indices.tolist())


def test_a_record_is_read() -> None:
    record = read_json(RUN / "prune.json")
    assert record["widths"] == [6, 6]
    assert record["probes"][-1] == [0, 6, record["final_entropy"]]


def test_the_run_is_done(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings find what they would write, and write nothing."""
    for name in ("tiny.json", "prune.yaml", "distill.yaml"):
        shutil.copy(BEFORE / name, tmp_path)
    shutil.copytree(RUN, tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*"))
    monkeypatch.chdir(tmp_path)
    for script, settings in (("main_score", "prune"), ("main_prune", "prune"), ("distill", "distill")):
        code, out, err = call(ROOT / f"{script}.py", "--config_file", f"{settings}.yaml")
        assert code == 0, err
        assert "already done: out/" in out
        code, _, err = call(ROOT / f"{script}.py", "--config_file", f"{settings}.yaml", "--set", "data.seed=1")
        assert code == 2
        assert "no such folder" in err, "another run would read the images, which are gone"
    assert sorted((tmp_path / "out").rglob("*")) == files

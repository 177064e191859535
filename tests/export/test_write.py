"""Laws of exported files: they give what the model gives, for any number of images, and a wrong one is never left."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import refusal
from helpers import hf_models
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from amp.errors import StoppedError
from amp.export import check, compile_blocks, export_tower, write
from amp.export.outputs import default_output, reader
from amp.models.folder import save_tower
from amp.run.sealed import read_json
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

PT2 = "model.pt2"
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 7}
TEXT = {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}


@pytest.fixture
def tower(tmp_path: Path) -> Tower:
    """A CLIP of two blocks, of other widths: an export takes longer with every block."""
    path = tmp_path / "clip.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}))
    return narrow(build_tower(ModelSettings(name=str(path))))


@pytest.fixture
def folder(tower: Tower, tmp_path: Path) -> Path:
    """Of the tower."""
    path = tmp_path / "pruned"
    save_tower(tower, [[*range(width)] for width in tower.widths], {}, path)
    return path


@pytest.fixture(params=["model.onnx", PT2])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file to write, of either kind."""
    if request.param != PT2:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return tmp_path / "out" / request.param


def of_transformers(folder: Path) -> Tower:
    hf_models.write(folder, "ViTForImageClassification", {**hf_models.VISION, "num_hidden_layers": 2, "num_labels": 5})
    return build_tower(hf_models.settings(folder))


def of_timm(folder: Path) -> Tower:
    return build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=TIMM))


def narrow(tower: Tower) -> Tower:
    """Another width in every block."""
    for index, slot in enumerate(tower.slots):
        slot.keep(torch.arange(slot.hidden_width - 8 - 5 * index))
    return tower


def run(file: Path, half: bool = False) -> Callable[[Tensor], Tensor]:
    """The file as a stranger runs it."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if half:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert [(given.name, given.shape[:2]) for given in session.get_inputs()] == [("images", ["batch", 3])]
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def gives(file: Path, tower: Tower, output: str, atol: float = 1e-5, half: bool = False) -> None:
    """The file gives that output of the model, for batches of sizes that it was not traced with."""
    own = run(file, half)
    for size in (1, 3, 7):
        images = torch.randn(size, 3, tower.image_size, tower.image_size)
        expected = reader(tower, output)(images)
        torch.testing.assert_close(own(images), expected, rtol=0, atol=atol * float(expected.abs().max()))


@pytest.mark.slow
def test_a_classifier_gives_logits(file: Path, tmp_path: Path) -> None:
    tower = narrow((of_timm if file.name == PT2 else of_transformers)(tmp_path / "vit"))
    found = export_tower(tower, file)
    assert found["output"] == "logits"
    assert found["checked"]
    gives(file, tower, "logits")


@pytest.mark.slow
def test_a_dual_encoder_gives_embeddings_and_says_what_it_is(tower: Tower, file: Path) -> None:
    counter = CompileCounterWithBackend("eager")
    compile_blocks(tower, backend=counter)
    found = export_tower(tower, file)
    assert counter.frame_count == 0  # What torch.compile makes of a model does not come along.
    torch._dynamo.reset()
    for block in tower.blocks.values():
        block._compiled_call_impl = None
    gives(file, tower, "embeddings")
    assert found["difference"] <= 1e-5 * found["scale"]
    assert sorted(left.name for left in file.parent.iterdir()) == sorted([file.name, "model.preprocess.json"])
    if file.suffix == ".onnx":
        import onnxruntime

        told = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    else:
        told = dict.fromkeys(("output", "preprocess", "made_of", "versions"))
        state = torch.export.load(file, extra_files=told).state_dict
        assert not any(tensor.numel() for name, tensor in state.items() if ".visual." not in f".{name}")
    made_of = json.loads(told["made_of"])
    assert made_of["widths"] == tower.widths
    assert json.loads(told["preprocess"]) == read_json(file.parent / "model.preprocess.json")
    assert json.loads(told["output"])["name"] == "embeddings"


@pytest.mark.slow
def test_half_precision(tower: Tower, file: Path) -> None:
    before = {name: tensor.clone() for name, tensor in tower.model.state_dict().items()}
    found = export_tower(tower, file, "fp16", "features")
    assert 0 < found["difference"] <= 1e-2 * found["scale"]
    gives(file, tower, "features", atol=1e-2, half=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.model.state_dict().items())


@pytest.mark.slow
def test_weights_of_a_large_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    tower, file = narrow(of_timm(tmp_path)), tmp_path / "out" / "model.onnx"
    monkeypatch.setattr(write, "MOST_INSIDE", 0)
    export_tower(tower, file)
    data = tmp_path / "out" / "model.onnx.data"
    assert data.stat().st_size > 0
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    gives(tmp_path / "elsewhere" / "model.onnx", tower, "logits")


@pytest.mark.slow
def test_a_file_that_gives_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tower, out = of_timm(tmp_path), tmp_path / "out"
    export_tower(tower, out / PT2)
    before = (out / PT2).read_bytes()
    with torch.no_grad():
        tower.model.head.bias.fill_(1e6)
    with pytest.raises(StoppedError, match=r"NaN or infinite.*use fp32"):
        export_tower(tower, out / PT2, "fp16")
    monkeypatch.setitem(check.BOUNDS, "fp32", -1.0)
    with pytest.raises(StoppedError, match="differ from the model's"):
        export_tower(tower, out / PT2)
    assert sorted(left.name for left in out.iterdir()) == ["model.preprocess.json", PT2]
    assert (out / PT2).read_bytes() == before


def test_outputs_by_the_kind_of_model(tower: Tower, tmp_path: Path) -> None:
    assert default_output(tower) == "embeddings"
    assert "embeddings and features" in refusal(partial(reader, tower, "logits"))
    without_head = {**TIMM, "num_classes": 0}
    settings = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=without_head)
    assert default_output(build_tower(settings)) == "features"
    for name, more, output in [
        ("ViTForImageClassification", {"num_labels": 5}, "logits"),
        ("CLIPVisionModelWithProjection", {"projection_dim": 16}, "embeddings"),
        ("Dinov2Model", {}, "features"),
    ]:
        hf_models.write(tmp_path / name, name, {**hf_models.VISION, **more})
        assert default_output(build_tower(hf_models.settings(tmp_path / name))) == output


@pytest.mark.slow
def test_images_of_another_model_are_not_replaced(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "can_run", lambda path: False)
    assert not export_tower(tower, tmp_path / PT2)["checked"]
    other = of_timm(tmp_path)
    assert "model.preprocess.json" in refusal(partial(export_tower, other, tmp_path / PT2))


@pytest.mark.slow
def test_the_command(folder: Path, tower: Tower, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    file = tmp_path / "out" / PT2
    code, out, err = call("amp/commands/export.py", folder, file)
    assert code == 0, err
    assert f"wrote {file}" in out
    assert "checked against the model: largest difference" in out
    gives(file, tower, "embeddings")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{folder}", "{tmp}/model.tflite"], ".onnx or .pt2"),
        (["{folder}", "{tmp}"], ".onnx or .pt2"),
        (["{folder}", "{folder}/config.json/model.pt2"], "TO"),
        (["{folder}", "{tmp}/there.pt2"], "already exists"),
        (["{folder}", "{tmp}/model.pt2", "--output", "logits"], "embeddings and features"),
        (["{folder}", "{tmp}/model.pt2", "--precision", "int8"], "int8"),
        (["{tmp}/nothing", "{tmp}/model.pt2"], "nothing"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], words: list[str], told: str
) -> None:
    (tmp_path / "there.pt2").touch()
    code, _, err = call("amp/commands/export.py", *(word.format(folder=folder, tmp=tmp_path) for word in words))
    assert code == 2
    assert told in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "model.pt2").exists()

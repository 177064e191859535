"""A pruned folder's own library loads it, by the Python of its README, where this project is missing."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, refusal
from helpers import hf_models
from helpers.hf_models import DUAL, SIZE, VISION
from huggingface_hub import ModelCard
from PIL import Image
from processes.strangers import read_as_strangers, snippets
from torch import Tensor

from amp.models.folder import load_tower, save_tower
from amp.models.native import settle
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower, with_heads
from amp.towers.frames.eva_clip import REGISTERED

pytestmark = pytest.mark.slow

IMAGE = Image.effect_noise((50, 40), 64).convert("RGB")
CODE, OWN, LINES = "modeling_pruned.py", "", "resizes the dense model"
# Class, config, the one width of all blocks, and how that is said: with code, in the library's own words, or in lines.
HF = [
    ("CLIPModel", DUAL, 24, OWN),
    ("CLIPVisionModelWithProjection", VISION, 24, OWN),
    ("SiglipVisionModel", VISION, 24, CODE),  # Its pool has an MLP of the config's width too.
    ("Dinov2ForImageClassification", {**SIZE, "use_swiglu_ffn": True}, 24, OWN),
    ("Dinov2Model", SIZE, 50, CODE),  # Its ratio is a whole number.
    ("ViTForImageClassification", {**VISION, "id2label": {0: "cat", 1: "dog", 2: "hen"}}, 24, OWN),
    ("Data2VecVisionForImageClassification", {**VISION, "use_relative_position_bias": True}, 24, OWN),
]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
TIMM = [
    ("timm", "vit_base_patch16_224.augreg_in21k", TINY | {"num_classes": 5}, 101, OWN),
    ("timm", "eva02_base_patch14_224", TINY, 85, OWN),
    ("dinov2", "vit_giant_patch14_dinov2", TINY | {"mlp_ratio": 5.5}, 88, OWN),
    ("timm", "vit_so400m_patch14_siglip_224", TINY, 101, LINES),
]
# Of which attention heads are gone too.
HEADED = ["CLIPModel", "Dinov2ForImageClassification", "vit_base_patch16_224.augreg_in21k", "trunk"]
CLIP = str(GOLDEN / "tiny-clip.json"), str(GOLDEN / "tiny-clip.safetensors")


@dataclass
class Read:
    """A folder, the tower it was saved from, what the tower gives, and what strangers saw."""

    folder: Path
    tower: Tower
    found: Tensor
    seen: dict[str, Any]


def _towers(place: Path) -> dict[str, tuple[Callable[[], Tower], int]]:
    """(makes a dense tower, a width for all blocks) by name."""
    made: dict[str, tuple[Callable[[], Tower], int]] = {}
    for name, config, width, _ in HF:
        hf_models.write(place / name, name, config)
        made[name] = (lambda name=name: build_tower(hf_models.settings(place / name)), width)
    for frame, name, kwargs, width, _ in TIMM:
        settings = ModelSettings(
            frame=frame, name=name, kwargs=kwargs, precision="bf16" if "eva02_b" in name else "fp32"
        )
        made[name] = (lambda settings=settings: build_tower(settings), width)
    for precision in ("fp32", "bf16"):
        settings = ModelSettings(name=CLIP[0], pretrained=CLIP[1], precision=precision)
        made[f"clip-{precision}"] = (lambda settings=settings: build_tower(settings), 101)
    trunk = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1}
    path = place / "trunk.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": trunk, "text_cfg": text, "custom_text": True}))
    made["trunk"] = (lambda: build_tower(ModelSettings(name=str(path))), 50)
    return made


def _slice(tower: Tower, widths: list[int]) -> list[list[int]]:
    kept = [
        list(range(slot.hidden_width - width, slot.hidden_width))
        for slot, width in zip(tower.slots, widths, strict=True)
    ]
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    return kept


@torch.no_grad()
def _output(tower: Tower, images: Tensor) -> Tensor:
    model: Any = tower.model
    for parameter in model.parameters():  # As strangers do: sums hang on where a tensor lies.
        parameter.data = parameter.data.clone()
    if tower.encode_image:
        return tower.encode_image(images)
    output = model(images)
    return output if isinstance(output, Tensor) else output[0]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Read], dict[str, Any]]:
    """What one process of strangers saw: of every folder, and of the entry point that timm does not have."""
    place = tmp_path_factory.mktemp("strangers")
    done: dict[str, Read] = {}
    for name, (make, width) in _towers(place).items():
        dense = make()
        for kind in ("same", "free", *(["heads"] if name in HEADED else [])):
            tower = copy.deepcopy(dense)
            tower = with_heads(tower) if kind == "heads" else tower
            widths = [width - (block if kind == "free" else 0) for block in range(len(tower.slots))]
            for slot in tower.heads[1:]:
                slot.keep(torch.tensor([1]))
            folder = place / f"{name}-{kind}"
            save_tower(tower, _slice(tower, widths), {}, folder)
            size = (2, 3, tower.image_size, tower.image_size)
            images = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(tower.dtype)
            torch.save(images, folder / "images.pt")
            done[folder.name] = Read(folder, tower, _output(tower, images), {})
    entry = place / "entry"
    entry.mkdir()
    made = 'timm.create_model("eva_clip_8b_patch14_224", img_size=28, embed_dim=32, depth=1, num_heads=2)'
    prelude = REGISTERED["eva_clip_8b_patch14_224"]
    (entry / "README.md").write_text(f"```python\nimport timm\n{prelude}\nmodel = {made}\n```")
    torch.save(torch.zeros(1, 3, 28, 28), entry / "images.pt")
    *of_folders, of_entry = read_as_strangers([*(own.folder for own in done.values()), entry], IMAGE, place)
    for own, seen in zip(done.values(), of_folders, strict=True):
        own.seen = seen
    return done, of_entry


@pytest.fixture
def read(strangers: tuple[dict[str, Read], dict[str, Any]]) -> dict[str, Read]:
    """By name and kind, as `CLIPModel-same` and `CLIPModel-free`: of one width, and of widths that differ."""
    return strangers[0]


NAMES = [*(name for name, *_ in HF), *(name for _, name, *_ in TIMM), "clip-fp32", "clip-bf16", "trunk"]


def test_its_library_gives_the_same_outputs(read: dict[str, Read]) -> None:
    named = [*(f"{name}-{kind}" for name in NAMES for kind in ("same", "free")), *(f"{name}-heads" for name in HEADED)]
    assert {*named} == {*read}
    for name, own in read.items():
        assert "error" not in own.seen, f"{name}: {own.seen['error']}"
        assert torch.equal(own.seen["found"], own.found), name
        # An image processor of transformers resizes in torch, which rounds to other bytes now and then.
        rounded = 2 / 255 / min(own.tower.preprocess["std"]) if (own.folder / "amp.json").exists() else 0
        torch.testing.assert_close(own.seen["pixels"], own.tower.transform(IMAGE), rtol=0, atol=rounded, msg=name)


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, _, _, how in HF])
def test_one_width_is_said_in_the_familys_own_words(name: str, how: str, read: dict[str, Read]) -> None:
    same, free = (read[f"{name}-{kind}"] for kind in ("same", "free"))
    config = json.loads((same.folder / "config.json").read_text())
    assert ("auto_map" in config, (same.folder / CODE).exists()) == ((how == CODE),) * 2
    assert "mlp_widths" not in json.dumps(config) or how == CODE
    assert not {"format", "widths", "checksum"} & config.keys(), "transformers' own keys alone"
    assert (free.folder / CODE).exists()
    assert (name in same.seen["class"], f"Pruned{name}" == free.seen["class"]) == (True, True)
    dense = json.loads((same.folder.parent / name / "config.json").read_text())
    assert config.get("id2label") == dense.get("id2label")
    kind: Any = getattr(transformers, name)
    if how == OWN:
        assert {*config} == {*dense}
        assert kind.from_pretrained(same.folder).state_dict().keys() == same.tower.model.state_dict().keys()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(free.folder)


@pytest.mark.parametrize(
    ("name", "how"), [(name, how) for _, name, _, _, how in TIMM] + [("trunk", LINES), ("clip-fp32", OWN)]
)
def test_one_width_is_said_to_the_factory(name: str, how: str, read: dict[str, Read]) -> None:
    for kind in ("same", "free"):
        text = (read[f"{name}-{kind}"].folder / "README.md").read_text()
        assert (LINES in text) == (kind == "free" or how == LINES)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "CLIPModel", "Dinov2Model"])
def test_save_pretrained_writes_what_reads_back(name: str, read: dict[str, Read], tmp_path: Path) -> None:
    """Of a loaded model; widths that no config can say are not written, also by a copy or from a pickle."""
    kind: Any = getattr(transformers, name)
    for own in (read[f"{name}-same"], read[f"{name}-free"]):
        model = load_tower(own.folder).model
        if "mlp_widths" in model.config.to_json_string():
            held = io.BytesIO()
            torch.save(model, held)
            held.seek(0)
            for one in (model, copy.deepcopy(model), torch.load(held, weights_only=False)):
                assert type(one.config).__name__ == kind.config_class.__name__
                assert isinstance(one.config, kind.config_class)
                said = refusal(partial(one.save_pretrained, tmp_path / own.folder.name))
                assert "cannot record widths that differ between blocks; use amp.save(model, folder)" in said
            assert not (tmp_path / own.folder.name / "config.json").exists()
        else:
            model.save_pretrained(tmp_path / own.folder.name)
            twin = kind.from_pretrained(tmp_path / own.folder.name).state_dict()
            assert all(torch.equal(tensor, twin[key]) for key, tensor in own.tower.model.state_dict().items())
    trusted = transformers.AutoModel.from_pretrained(read[f"{name}-free"].folder, trust_remote_code=True)
    trusted.save_pretrained(tmp_path / "trusted")
    assert (tmp_path / "trusted" / CODE).exists()


def test_settling_follows_the_widths(tmp_path: Path) -> None:
    hf_models.write(tmp_path, "CLIPModel", DUAL)
    tower = build_tower(hf_models.settings(tmp_path))
    config: Any = tower.model.config
    for widths, said in (([40, 30, 30], [40, 30, 30]), ([20, 20, 20], None), ([20, 20, 10], [20, 20, 10])):
        _slice(tower, widths)
        settle(tower)
        assert getattr(config.vision_config, "mlp_widths", None) == said
        assert config.text_config.intermediate_size == 48
    assert config.vision_config.intermediate_size == 20


def test_eva_clip_8b_is_made_known_to_timm(strangers: tuple[dict[str, Read], dict[str, Any]]) -> None:
    assert "error" not in strangers[1], strangers[1]["error"]
    assert strangers[1]["class"] == "Eva"


def test_the_card_is_one_of_the_hubs(read: dict[str, Read]) -> None:
    named = {"hf": "transformers", "dinov2": "timm", "timm": "timm", "open_clip": "open_clip"}
    for own in read.values():
        told = ModelCard.load(own.folder / "README.md").data
        assert told.library_name == named[own.tower.base["frame"]]
        assert "adaptive-mlp-pruning" in told.tags
        assert len(snippets(own.folder)) == 2
    tasks = {name: ModelCard.load(own.folder / "README.md").data.pipeline_tag for name, own in read.items()}
    assert tasks["CLIPModel-same"] == tasks["clip-fp32-free"] == "zero-shot-image-classification"
    assert tasks["ViTForImageClassification-free"] == tasks[f"{TIMM[0][1]}-same"] == "image-classification"
    assert tasks["Dinov2Model-same"] == "image-feature-extraction"

"""The model card of a folder: what it tells, that it is the same every time, that an edited one stays."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import refusal
from helpers import hf_models
from helpers.model_folders import PROVENANCE
from huggingface_hub import ModelCard
from PIL import Image

from amp.models.folder import load_tower, read_folder_config, save_tower
from amp.run.sealed import is_there
from amp.settings.model import ModelSettings, TransformSettings
from amp.towers import Tower, build_tower, library

pytestmark = pytest.mark.slow


def test_it_tells_sizes_measurements_and_the_command(tower: Tower, kept: list[list[int]], tmp_path: Path) -> None:
    measured, command = {"top-1 on digits": "97.1 %"}, "python main_prune.py --config_file a.yaml"
    save_tower(tower, kept, PROVENANCE, tmp_path / "a", measured=measured, command=command)
    text = (tmp_path / "a" / "README.md").read_text()
    assert "from the first block to the last: 8, 256, 31, 1, 100; dense: 256 in each." in text
    assert "| top-1 on digits | 97.1 % |" in text
    assert f"\n    {command}\n" in text
    assert str(tmp_path) not in text
    assert ModelCard.load(tmp_path / "a" / "README.md").data.to_dict().keys() == {
        "library_name",
        "pipeline_tag",
        "tags",
    }


def test_an_edited_card_stays(
    tower: Tower, kept: list[list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "a" / "README.md"
    save_tower(tower, kept, {}, tmp_path / "a", command="one")
    save_tower(tower, kept, {}, tmp_path / "a", command="another")
    assert "    another" in card.read_text()
    assert capsys.readouterr().out == ""
    card.write_text(card.read_text().replace("pruned\n", "for drones\n", 1))
    edited = card.read_text()
    save_tower(tower, kept, {}, tmp_path / "a", command="a third")
    assert card.read_text() == edited
    assert capsys.readouterr().out == f"note: {card} was edited by hand and is kept\n"


@pytest.mark.parametrize(
    ("frame", "name", "pretrained", "expected"),
    [
        (
            "timm",
            "vit_tiny_patch16_224.augreg_in21k",
            "augreg_in21k",
            ("timm/vit_tiny_patch16_224.augreg_in21k", "apache-2.0"),
        ),
        ("timm", "vit_tiny_patch16_224.augreg_in21k", "mine.pt", (None, None)),
        ("open_clip", "ViT-B-32", "laion2b_s34b_b79k", ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)),
        ("open_clip", "ViT-B-32", None, (None, None)),
        ("hf", "google/vit-base-patch16-224", None, ("google/vit-base-patch16-224", None)),
        ("hf", "/gone/vit", None, (None, None)),
    ],
)
def test_what_it_was_pruned_from(
    frame: str, name: str, pretrained: str, expected: tuple[str | None, str | None]
) -> None:
    known = library(frame).native.origin({"name": name, "variant": name}, pretrained)
    assert (known.get("base_model"), known.get("license")) == expected


def test_what_stands_beside_a_transformers_model_goes_along(tmp_path: Path) -> None:
    dense, image = tmp_path / "dense", Image.effect_noise((50, 40), 64).convert("RGB")
    hf_models.write(dense, "CLIPModel", hf_models.DUAL)
    hf_models.add_clip_tokenizer(dense)
    transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        dense
    )
    (dense / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    (dense / "chat_template.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "code.P"}}))
    cropped = ModelSettings(frame="hf", name=str(dense), transform=TransformSettings(crop_pct=1.0))
    for settings, same in ((hf_models.settings(dense), True), (cropped, False)):
        folder = tmp_path / ("as it was" if same else "changed")
        tower = build_tower(settings)
        for slot in tower.slots:
            slot.keep(torch.arange(20))
        save_tower(tower, [list(range(20))] * 3, {}, folder)
        written = (folder / "preprocessor_config.json").read_bytes()
        assert (written == (dense / "preprocessor_config.json").read_bytes()) == same
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        pixels = processor(image, return_tensors="pt").pixel_values[0]
        assert (pixels - tower.transform(image)).abs().max() < 0.02
        assert transformers.AutoTokenizer.from_pretrained(folder)(["a b"]).input_ids
        assert ModelCard.load(folder / "README.md").data.license == "mit"
        assert not (folder / "chat_template.json").exists(), "it names code"
    ids = tower.make_tokenizer()(["a b"])
    shutil.rmtree(dense)
    assert torch.equal(load_tower(folder).make_tokenizer()(["a b"]), ids)


def test_nothing_stale_is_left_for_the_library(tmp_path: Path) -> None:
    hf_models.write(tmp_path / "dense", "ViTModel", hf_models.VISION)
    folder = tmp_path / "pruned"
    for widths in ([20, 20, 10], [10, 10, 10]):
        tower = build_tower(hf_models.settings(tmp_path / "dense"))
        for slot, width in zip(tower.slots, widths, strict=True):
            slot.keep(torch.arange(width))
        save_tower(tower, [list(range(width)) for width in widths], {}, folder)
        (folder / "notes.txt").write_text("mine")
        assert (folder / "modeling_pruned.py").exists() == (widths[0] != widths[2])
    assert read_folder_config(folder).files == ("preprocessor_config.json",)
    assert (folder / "notes.txt").exists()
    assert is_there(folder / "config.json")
    (folder / "amp.json").unlink()
    assert not is_there(folder / "config.json"), "what is left is transformers' own"
    assert "does not describe a pruned model" in refusal(lambda: load_tower(folder))

"""What Hugging Face's towers read: images and texts as the model's own processor makes them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import refusal
from helpers.hf_models import DUAL, VISION, add_clip_tokenizer, add_siglip_tokenizer, settings, write
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from amp.api import load_pruned
from amp.models.folder import save_tower
from amp.settings.model import TransformSettings
from amp.towers import build_tower
from amp.towers.frames._tokenizer import Tokenizer


def test_transform_is_the_processors(tmp_path: Path) -> None:
    image = Image.effect_noise((53, 41), 64)
    crop = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    squash = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    for name, processor in (("CLIPVisionModel", crop), ("SiglipVisionModel", squash)):
        write(tmp_path / name, name, VISION)
        processor.save_pretrained(tmp_path / name)
        tower = build_tower(settings(tmp_path / name))
        expected = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(tower.transform(image), expected, rtol=0, atol=1e-5)
    own = TransformSettings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")
    tower = build_tower(settings(tmp_path / "CLIPVisionModel", transform=own))
    assert torch.equal(tower.transform(Image.new("RGB", (40, 40), "white")), torch.full((3, 32, 32), 2.0))
    assert tower.preprocess["interpolation"] == "bilinear"


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "CLIPModel": add_clip_tokenizer,
    "MetaClip2Model": add_clip_tokenizer,
    "Aimv2Model": add_clip_tokenizer,
    "SiglipModel": add_siglip_tokenizer,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_embeddings_are_the_models_own(name: str, tmp_path: Path) -> None:
    model = write(tmp_path, name, DUAL)
    TOKENIZERS[name](tmp_path)
    tower = build_tower(settings(tmp_path))
    assert tower.encode_image is not None
    assert tower.encode_text is not None
    texts = ["a", "red", "a green four over a blue seven"]
    # As the library's own examples call its processors: SigLIP was trained on full contexts.
    padding = "max_length" if name == "SiglipModel" else True
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(texts, truncation=True, max_length=12, padding=padding, return_tensors="pt")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    output = model(pixel_values=images, **inputs)
    ids = tower.make_tokenizer()(texts)
    assert ids.shape == (3, 12)
    for embeddings, expected in (
        (tower.encode_image(images), output.image_embeds),
        (tower.encode_text(ids), output.text_embeds),
    ):
        torch.testing.assert_close(F.normalize(embeddings, dim=-1), expected, rtol=0, atol=1e-6)
    assert (output.text_embeds[0] - output.text_embeds[1]).abs().max() > 1e-2
    # The last one fills the context: nothing may hang on the padding of the texts beside it.
    torch.testing.assert_close(tower.encode_text(ids[2:]), tower.encode_text(ids)[2:], rtol=0, atol=1e-5)


def _add_gemma_tokenizer(folder: Path, **more: Any) -> None:
    """What the files of a fixed-size SigLIP 2 name: it keeps capitals."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *"abcdABCD"]
    tokenizer = transformers.GemmaTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], **more)
    tokenizer.save_pretrained(folder)


def test_siglip_2_reads_lower_case(tmp_path: Path) -> None:
    for name, more, lower in (("as released", {}, True), ("told not to", {"do_lower_case": False}, False)):
        write(tmp_path / name, "SiglipModel", DUAL)
        _add_gemma_tokenizer(tmp_path / name, **more)
        tokenizer = build_tower(settings(tmp_path / name)).make_tokenizer()
        assert torch.equal(tokenizer(["ABBA"]), tokenizer(["abba"])) == lower
    write(tmp_path / "clip", "CLIPModel", DUAL)
    _add_gemma_tokenizer(tmp_path / "clip")
    tokenizer = build_tower(settings(tmp_path / "clip")).make_tokenizer()
    assert not torch.equal(tokenizer(["ABBA"]), tokenizer(["abba"]))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    def broken(texts: list[str]) -> Tensor:
        raise ValueError("no padding token")

    for words, make, context, vocabulary in (
        (
            "m: its tokenizer gives 3 ids per text, but the text tower reads 4",
            lambda texts: torch.full((1, 3), 7),
            4,
            8,
        ),
        (
            "m: its tokenizer gives the id 7, but the text tower knows only 7 ids",
            lambda texts: torch.full((1, 3), 7),
            3,
            7,
        ),
        ("m: its tokenizer cannot read texts (no padding token)", broken, 3, 7),
    ):
        tokenizer = Tokenizer("m", lambda make=make: make, context, vocabulary)  # type: ignore[misc]
        assert refusal(lambda tokenizer=tokenizer: tokenizer(["a"])) == words  # type: ignore[misc]


def test_tokenizer_is_read_from_the_folder_when_called(tmp_path: Path) -> None:
    write(tmp_path / "dense", "CLIPModel", DUAL)
    add_clip_tokenizer(tmp_path / "dense")
    tower = build_tower(settings(tmp_path / "dense"))
    assert tower.make_tokenizer()(["a", "a a a a a a a a a a a a a"]).shape == (2, 12)
    save_tower(tower, [list(range(48))] * 3, {}, tmp_path / "pruned")
    shutil.rmtree(tmp_path / "dense")
    model, _, tokenizer = load_pruned(tmp_path / "pruned")
    assert isinstance(model, transformers.CLIPModel)
    assert tokenizer(["a"]).shape == (1, 12), "the folder has the tokenizer too"
    for file in (tmp_path / "pruned").glob("*token*"):
        file.unlink()
    lost = load_pruned(tmp_path / "pruned")[2]
    assert "its tokenizer cannot be read" in refusal(lambda: lost(["a"]))

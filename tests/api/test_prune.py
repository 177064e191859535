"""`amp.prune`: what the scripts find, of any model object, in any state, on any images; the model stays as it was."""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import GOLDEN, WORLD, built, refusal
from helpers import hf_models
from helpers.objects import equal, hooks, tiny_vit, weights_of
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import amp
from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.models.folder import load_tower, read_folder_config
from amp.run.world import among
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config
from amp.towers import build_tower

pytestmark = pytest.mark.slow

RIDGE = {"criterion": "reconstruction", "allocation": "global", "compensation": "ridge", "num_calibration_samples": 32}
ENTROPY = {"criterion": "entropy", "allocation": "search", "compensation": "none"}


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(images: Tensor, _one_thread: None) -> Any:
    """`vit`, pruned as it is."""
    with among(WORLD):
        return amp.prune(tiny_vit(), list(images), params=0.8)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"params": 0.7, **RIDGE},
            ["score.criterion=reconstruction", "prune.allocation=global", "prune.target.params=0.7"],
        ),
        (ENTROPY, ["prune.entropy_increase=0.01"]),
    ],
    ids=["recommended", "as published"],
)
def test_a_model_object_is_pruned_as_the_scripts_do_it(
    said: dict[str, Any],
    words: list[str],
    prune_yaml: Path,
    tmp_path: Path,
    call: Callable[..., Any],
    golden_images: Path,
) -> None:
    if said.get("compensation") == "ridge":
        words = [*words, "prune.compensation=ridge", "prune.num_calibration_samples=32"]
    options = [part for word in words for part in ("--set", word)]
    for script in ("main_score.py", "main_prune.py"):
        assert call(script, "--config_file", prune_yaml, *options)[0] == 0
    model = build_tower(load_config(PruneConfig, prune_yaml).model).model
    data = {"batch_size": 32, "shuffle": False, "num_workers": 0}
    pruned = amp.prune(model, golden_images, data=data, model={"name": f"{GOLDEN}/tiny-clip.json"}, **said)
    folder = tmp_path / "out" / "pruned"
    assert pruned.report.widths == list(read_folder_config(folder).widths)
    assert equal(weights_of(pruned.model), load_file(folder / "model.safetensors"))
    config = load_config(PruneConfig, prune_yaml)
    lists = [
        list(Batches(list_images(config.data, split), pruned.transform, config.data)) for split in ("train", "val")
    ]
    again = amp.prune(model, lists[0], held_out=lists[1], data=data, **said)
    assert equal(weights_of(again.model), weights_of(pruned.model))
    assert again.report.final_entropy == pruned.report.final_entropy


def _dual(folder: Path) -> Any:
    return hf_models.write(folder, "CLIPModel", {**hf_models.DUAL, "projection_dim": 24})


def _gated(folder: Path) -> Any:
    return hf_models.write(folder, "Dinov2Model", {**hf_models.SIZE, "use_swiglu_ffn": True})


OBJECTS: dict[str, Callable[[Path], Any]] = {
    "timm": lambda folder: tiny_vit(),
    "timm, gated": lambda folder: timm.create_model(
        "eva02_tiny_patch14_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=2
    ),
    "open_clip": lambda folder: copy.deepcopy(
        built(f"{GOLDEN}/tiny-clip.json", f"{GOLDEN}/tiny-clip.safetensors").model
    ),
    "transformers, two towers": _dual,
    "transformers, gated": _gated,
}


@pytest.mark.parametrize("library", OBJECTS)
def test_a_pruned_object_is_saved_and_loaded(library: str, tmp_path: Path, images: Tensor) -> None:
    model = OBJECTS[library](tmp_path / "dense")
    said = {"name": f"{GOLDEN}/tiny-clip.json"} if library == "open_clip" else {}
    pruned = amp.prune(model, list(images), params=0.8, model=said, compensation="ridge")
    assert type(pruned.model) is type(model)
    assert pruned.report.params["pruned"] == pytest.approx(0.8 * pruned.report.params["dense"], rel=0.02)
    amp.save(pruned, tmp_path / "folder")
    loaded, transform, _ = amp.load_pruned(tmp_path / "folder")
    assert equal(weights_of(loaded), weights_of(pruned.model))
    feature = load_tower(tmp_path / "folder").feature(images[:4])
    assert feature.shape[0] == 4
    assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(p.requires_grad for p in amp.load_pruned(tmp_path / "folder", trainable=False)[0].parameters())
    amp.save(loaded, tmp_path / "again")  # what was loaded, and trained maybe, is saved as well
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "folder" / "model.safetensors"
    ).read_bytes()


def in_bf16(model: Any) -> Any:
    return model.bfloat16()


def training(model: Any) -> Any:
    return model.train()


def checkpointed(model: Any) -> Any:
    model.train().set_grad_checkpointing(True)
    return model


def compiled(model: Any) -> Any:
    return torch.compile(model)


def partly_frozen(model: Any) -> Any:
    model.patch_embed.requires_grad_(False)
    return model


@pytest.mark.parametrize("state", [in_bf16, training, checkpointed, compiled, partly_frozen])
def test_a_model_in_any_state_is_pruned_and_stays_as_it_was(
    state: Callable[[Any], Any], vit: nn.Module, images: Tensor, plain: Any
) -> None:
    model = state(vit)
    before, flags = weights_of(model), [p.requires_grad for p in model.parameters()]
    pruned = amp.prune(model, list(images), params=0.8)
    assert equal(before, weights_of(model))
    assert (
        flags == [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in pruned.model.parameters()]
    )
    assert hooks(model) == hooks(pruned.model) == 0
    assert type(pruned.model) is type(tiny_vit())
    assert [m.training for m in pruned.model.modules()] == [
        m.training for m in getattr(model, "_orig_mod", model).modules()
    ]
    assert pruned.model.grad_checkpointing == vit.grad_checkpointing
    assert {p.dtype for p in pruned.model.parameters()} == {p.dtype for p in vit.parameters()}
    if state is not in_bf16:
        assert equal(weights_of(pruned.model), weights_of(plain.model))


def test_gradient_checkpointing_of_transformers_stays_on(tmp_path: Path, images: Tensor) -> None:
    model = hf_models.write(tmp_path, "ViTModel", {**hf_models.VISION})
    model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    pruned = amp.prune(model, list(images), params=0.8, compensation="ridge")
    assert any(getattr(module, "gradient_checkpointing", False) for module in pruned.model.modules())
    assert pruned.model.training
    pruned.model(images[:2]).last_hidden_state.sum().backward()


def test_a_model_in_distributed_data_parallel(vit: nn.Module, images: Tensor, plain: Any, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        pruned = amp.prune(nn.parallel.DistributedDataParallel(vit), list(images), params=0.8)
    finally:
        torch.distributed.destroy_process_group()
    assert equal(weights_of(pruned.model), weights_of(plain.model))


class _Attention(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.out = attention.qkv, attention.proj

    def forward(self, tokens_BTD: Tensor, *inputs: Any, **named: Any) -> Tensor:
        query, key, value = self.qkv(tokens_BTD).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(query, key, value))


def test_a_model_with_attention_of_its_own_is_pruned_but_no_name_rebuilds_it(
    vit: Any, images: Tensor, tmp_path: Path
) -> None:
    for block in vit.blocks:
        block.attn = _Attention(block.attn)
    pruned = amp.prune(vit, list(images), params=0.8, compensation="ridge")
    assert pruned.report.flops["pruned"] < pruned.report.flops["dense"]
    assert isinstance(pruned.model.blocks[0].attn, _Attention)
    assert "amp.save: it is unknown how this vit_tiny_patch16_224 was built" in refusal(
        lambda: amp.save(pruned, tmp_path / "folder")
    )
    assert not (tmp_path / "folder").exists()


def test_another_size_comes_from_the_same_scores(vit: nn.Module, images: Tensor, plain: Any) -> None:
    smaller = plain.resize(params=0.6)
    assert equal(weights_of(smaller.model), weights_of(amp.prune(vit, list(images), params=0.6).model))
    assert equal(weights_of(smaller.resize(params=0.8).model), weights_of(plain.model))
    assert smaller.resize(flops=0.7).report.flops["pruned"] < 0.72 * smaller.report.flops["dense"]
    assert "out of reach" in refusal(lambda: plain.resize(params=0.01))
    assert "resize: give exactly one of params" in refusal(plain.resize)


@pytest.mark.usefixtures("pictures")
def test_the_report_is_a_table_and_a_picture(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    report = amp.prune(vit, list(images), **ENTROPY, entropy_increase=0.05).report
    assert "| parameters" in str(report)
    assert "nats" in repr(report)
    assert report._repr_markdown_().startswith("| vision tower")
    report.plot().savefig(tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width > 500
    assert report.probes


def test_a_pruned_model_trains_and_is_freed(vit: nn.Module, images: Tensor) -> None:
    pruned = amp.prune(vit, list(images), params=0.8, compensation="ridge")
    optimizer = torch.optim.AdamW(pruned.model.parameters(), lr=1e-2)
    before = weights_of(pruned.model)
    pruned.model(images[:8]).square().mean().backward()
    optimizer.step()
    assert not any(torch.equal(before[name], tensor) for name, tensor in pruned.model.named_parameters())
    watched = weakref.ref(pruned.model)
    del pruned, optimizer
    gc.collect()
    assert watched() is None

"""Laws of the replay: a tower run from any block on gives the features of the whole run, and is left as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, WORLD, refusal
from helpers.hf_models import write
from helpers.scripted_entropy import INCREASE, networks_of
from torch import Tensor

from amp.errors import StoppedError
from amp.pruning.blocks import WidthsFound, search_blocks
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.replay import Replay
from amp.pruning.measure.store import InputStore, _has_room
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.towers import Tower, build_tower

GPU = torch.device("cuda", 0)
SMALL = {"depth": 4, "img_size": 56}
HF = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
TOWERS: dict[str, tuple[Any, ...]] = {
    "open_clip": ("open_clip", str(GOLDEN / "tiny-clip.json"), {}),
    "trunk": ("open_clip", "{tmp}/trunk.json", {}),
    "timm": ("timm", "vit_tiny_patch16_224", {"depth": 4}),
    "rope": ("timm", "eva02_tiny_patch14_224", SMALL),
    "relative positions": ("timm", "beit_base_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 4}),
    "dinov2": ("dinov2", "vit_small_patch14_dinov2", SMALL),
    "dinov3": ("dinov2", "vit_small_patch16_dinov3", {"depth": 4, "img_size": 64}),
    "hf clip": ("hf", "CLIPVisionModel", {}),
    "hf siglip": ("hf", "SiglipVisionModel", {}),
    "hf beit": ("hf", "BeitModel", {}),
    "hf dinov2": ("hf", "Dinov2Model", {}),
    "hf dinov3": ("hf", "DINOv3ViTModel", {}),
}


def random_batches(tower: Tower) -> list[Tensor]:
    shape = (3, 2, 3, tower.image_size, tower.image_size)
    return list(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tower.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TOWERS)
def test_every_block_replays_the_whole_run(name: str, precision: Any, tmp_path: Path) -> None:
    frame, model, kwargs = TOWERS[name]
    if frame == "hf":
        write(tmp_path, model, {"patch_size": 8, **HF})
        model = str(tmp_path)
    if name == "trunk":
        vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token"}
        config = json.loads((GOLDEN / "tiny-clip.json").read_text())
        config["vision_cfg"] = {**vision, "timm_proj": "linear", "image_size": 160}
        (tmp_path / "trunk.json").write_text(json.dumps(config))
        model = str(tmp_path / "trunk.json")
    tower = build_tower(ModelSettings(frame=frame, name=model, kwargs=kwargs, precision=precision))
    batches = random_batches(tower)
    modules = dict(tower.visual.named_modules())
    with torch.inference_mode():
        expected = [tower.feature(images_BCSS) for images_BCSS in batches]
        replay = Replay(tower, batches, InputStore("host", WORLD.device), every=2)
        assert replay.batch_size == 2
        for block in reversed(range(len(tower.blocks))):
            # Lazily: the second look needs a batch more.
            found = [*replay.map(block, range(2), torch.clone), *replay.map(block, range(2, 3), torch.clone)]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert dict(tower.visual.named_modules()) == modules
    assert not any(block._forward_pre_hooks for block in tower.blocks.values())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["auto", "device", "host", "disk"])
@pytest.mark.parametrize("every", [1, 2, 9])
def test_exact_search_equals_the_plain_one_wherever_inputs_are_kept(
    tower: Tower, scores: list[Tensor], batches: Callable[[str], list[Tensor]], tmp_path: Path, place: Any, every: int
) -> None:
    def find(*store: Any) -> tuple[WidthsFound, HeldOutEntropy]:
        held_out = HeldOutEntropy(tower, batches("val"), 15.0, *store)
        return search_blocks(networks_of(tower, scores, held_out), SearchSettings(search_steps=2), INCREASE), held_out

    plain, _ = find()
    found, held_out = find(InputStore(place, WORLD.device, tmp_path / "inputs"), every)
    assert found == plain
    assert held_out.cost["block_forwards"] == 2 * (5 + 2 * (1 + 2 + 3 + 4 + 5) + sum(b % every for b in range(4)))
    assert held_out.cost["images"] == 32 * 2 * (1 + 10)
    assert (tmp_path / "inputs").exists() == (place == "disk")
    held_out.close()
    assert not (tmp_path / "inputs").exists()


def test_the_blocks_that_run_are_those_that_are_counted(
    tower: Tower, scores: list[Tensor], batches: Callable[[str], list[Tensor]]
) -> None:
    """Lazily, by racing, at one threshold after another: the blocks that ran are those that were charged."""
    ran: list[int] = []
    for block in tower.blocks.values():
        block.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    images = torch.cat(batches("val"))
    held_out = HeldOutEntropy(tower, list(images.split(4)), 15.0, every=3)
    proof = len(ran)
    settings = SearchSettings(search="racing", preset="fast", search_steps=4)
    networks = networks_of(tower, scores, held_out)
    for threshold in (INCREASE, INCREASE / 10):
        search_blocks(networks, settings, threshold)
    assert len(ran) - proof == held_out.cost["block_forwards"]


def test_what_is_kept_is_foretold(tower: Tower, batches: Callable[[str], list[Tensor]]) -> None:
    replay = Replay(tower, batches("val"), InputStore("host", WORLD.device), every=2)
    one_input, images = 64 * 17 * 64 * 4, 64 * 3 * 32 * 32 * 4
    assert replay.stored_bytes == images + 3 * one_input  # of blocks 2 and 4, and of the one that runs


def test_blocks_are_back_after_an_exception(tower: Tower, batches: Callable[[str], list[Tensor]]) -> None:
    modules = dict(tower.visual.named_modules())
    replay = Replay(tower, batches("val"), InputStore("host", WORLD.device), every=2)
    with pytest.raises(ZeroDivisionError):
        replay.map(3, range(1), lambda feature_BD: 1 / 0)
    assert dict(tower.visual.named_modules()) == modules


def test_a_tower_that_cannot_be_replayed_is_refused(tower: Tower, batches: Callable[[str], list[Tensor]]) -> None:
    """One whose later blocks see more of the images than what the block before them hands on."""
    embed = tower.visual.get_submodule("conv1")
    seen: list[Tensor] = []
    embed.register_forward_hook(lambda module, inputs, output: seen.append(output.mean()))
    list(tower.blocks.values())[-1].register_forward_hook(lambda module, inputs, output: output * seen[-1])
    says = refusal(lambda: Replay(tower, batches("val"), InputStore("host", WORLD.device), every=2))
    assert says.startswith("prune.search: a ")
    assert says.endswith("use plain, which runs every block each time")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    store = InputStore("disk", WORLD.device, tmp_path / "a file" / "inputs")
    (tmp_path / "a file").touch()
    with pytest.raises(StoppedError, match=r"prune\.store: disk: .*inputs cannot be written \(Not a directory\)"):
        store.put((0, 0), torch.ones(2))


def test_auto_leaves_two_fifths_of_a_gpu_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 bytes 30 are free, and torch holds 35 of which it uses 10: 45 are taken, and 15 may be filled."""
    for name, value in {"mem_get_info": (30, 100), "memory_reserved": 35, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert [_has_room(GPU, num_bytes) for num_bytes in (15, 16)] == [True, False]
    assert not _has_room(torch.device("cpu"), 1)


def test_auto_leaves_what_is_promised_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ten:
        nbytes, is_cuda = 10, False

        def to(self, device: Any, **how: Any) -> Any:
            return device

    ten: Any = Ten()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (55, 100))
    for promised, place in ((5, GPU), (6, ten)):
        store = InputStore("auto", GPU, promised=promised).beside()
        store.put((0, 0), ten)
        assert store._held[0, 0] is place


def test_a_full_device_is_the_users_to_mend() -> None:
    class Full:
        def to(self, device: Any) -> None:
            raise torch.OutOfMemoryError

    full: Any = Full()
    assert "prune.store" in refusal(lambda: InputStore("device", WORLD.device).put((0, 0), full))

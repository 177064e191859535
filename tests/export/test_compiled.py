"""Laws of compiled blocks: none runs uncompiled, whatever the widths, and nothing but the speed changes."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import hf_models
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from amp.export import compile_blocks
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

DEPTH = 9  # One width more than torch makes graphs by itself, which is 8.


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def narrow(tower: Tower) -> Tower:
    for index, slot in enumerate(tower.slots):
        slot.keep(torch.arange(slot.hidden_width - 2 * index))
    return tower


def of_timm(name: str = "vit_tiny_patch16_224", **more: Any) -> Tower:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": DEPTH, "num_heads": 2, **more}
    return narrow(build_tower(ModelSettings(frame="timm", name=name, kwargs=size)))


def of_transformers(folder: Path) -> Tower:
    hf_models.write(folder, "ViTModel", {**hf_models.VISION, "num_hidden_layers": DEPTH})
    return narrow(build_tower(hf_models.settings(folder)))


def images(tower: Tower, size: int = 2) -> Tensor:
    return torch.randn(size, 3, tower.image_size, tower.image_size)


def counted(model: Any, **more: Any) -> CompileCounterWithBackend:
    """Compiles the blocks without a compiler, and counts the graphs that it would get."""
    counter = CompileCounterWithBackend("eager")
    assert compile_blocks(model, backend=counter, **more) is model
    return counter


def all_compiled() -> bool:
    """Whether no block ran as it is: nothing was given up, and no graph was broken."""
    return not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.slow
def test_by_itself_torch_runs_blocks_beyond_the_eighth_uncompiled() -> None:
    tower, counter = of_timm(), CompileCounterWithBackend("eager")
    for block in tower.blocks.values():
        block.compile(backend=counter)
    tower.feature(images(tower))
    assert len(set(tower.widths)) == DEPTH
    assert counter.frame_count == 8 < DEPTH


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers", "open_clip"])
def test_two_graphs_for_blocks_of_any_widths(library: str, tmp_path: Path, tower: Tower) -> None:
    if library != "open_clip":
        tower = of_timm() if library == "timm" else of_transformers(tmp_path)
    narrow(tower)
    few, more = images(tower), images(tower, 5)
    expected = [tower.feature(few), tower.feature(more)]
    counter = counted(tower.model)
    found = [tower.feature(few)]
    assert counter.frame_count == 2
    found.append(tower.feature(more))
    assert counter.frame_count == 3
    assert all_compiled()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "depth"),
    [("eva02_base_patch14_224", {}, 3), ("vit_tiny_patch16_224", {"dynamic": False}, DEPTH)],
    ids=["hidden norm", "asked for"],
)
def test_a_graph_for_each_width_where_widths_are_part_of_it(name: str, more: dict[str, Any], depth: int) -> None:
    tower = of_timm(name, depth=depth)
    few = images(tower)
    expected = tower.feature(few)
    counter = counted(tower, **more)
    torch.testing.assert_close(tower.feature(few), expected, rtol=0, atol=2e-6)
    assert counter.frame_count == depth
    assert all_compiled()


@pytest.mark.slow
# torch hides this one from users, but not where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_training_precisions_and_modes_take_a_graph_each_and_none_falls_back() -> None:
    tower = of_timm(num_classes=5)
    twin = copy.deepcopy(tower.model)
    counter = counted(tower.model)
    few = images(tower)
    with torch.inference_mode():
        tower.model(few)
    losses = []
    for model in (tower.model, twin):
        model.requires_grad_(True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(few), torch.tensor([1, 3]))
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tower.model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tower.model(few).sum().backward()
    tower.model.eval().to(torch.bfloat16)(few.bfloat16()).sum().backward()
    for size in (1, 3):
        with torch.no_grad():
            tower.model(images(tower, size).bfloat16())
    assert all_compiled()
    assert counter.frame_count <= 9


@pytest.mark.slow
def test_a_compiled_model_is_saved_and_copied_as_it_was(tmp_path: Path) -> None:
    tower = of_timm()
    names = list(tower.model.state_dict())
    expected = tower.feature(images(tower))
    counter = counted(tower.model)
    assert list(tower.model.state_dict()) == names
    for other in (copy.deepcopy(tower.model), pickle.loads(pickle.dumps(tower.model))):
        other(images(tower))
    assert counter.frame_count == 0
    assert expected.shape == tower.feature(images(tower)).shape


@pytest.mark.slow
def test_a_block_that_cannot_be_compiled_is_an_error() -> None:
    tower = of_timm()
    tower.blocks["blocks.3"].register_forward_hook(
        lambda module, inputs, output: output if output.sum() > 0 else -output
    )
    counted(tower.model)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        tower.feature(images(tower))


@pytest.mark.slow
def test_with_a_real_compiler() -> None:
    tower = of_timm(depth=2)
    few = images(tower)
    expected = tower.feature(few)
    compile_blocks(tower.model)
    with torch.inference_mode():
        torch.testing.assert_close(tower.feature(few), expected, rtol=0, atol=2e-5)

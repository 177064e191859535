"""Laws of the scores by every criterion: what they are of, what they cost, and what they refuse.

B images, T tokens, N tokens of all images, D width, H hidden width, E embedding width, C classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal
from mlp_layouts import ALL, D, H, make_block
from score_many import score_many
from test_taylor import masks, random_batches
from torch import Tensor
from toy_blocks import Toy, toy_input

from amp.score.criteria.cross_entropy import zero_shot_cross_entropy
from amp.score.criteria.kl import sampled_surprisal
from amp.score.criteria.variance import VarianceScorer
from amp.score.scores_file import load_scores
from amp.score.scoring import class_embeddings, neuron_rows, score, score_cross_entropy, score_kl
from amp.settings.model import ModelSettings
from amp.settings.score import ScoreSettings
from amp.towers import Tower, build_tower

Call = Callable[..., tuple[int, str, str]]


def by_masks(tower: Tower, images_BCHW: Tensor, loss: Callable[[], Tensor]) -> list[Tensor]:
    """(B, H) a block: the loss's derivative by each image's and neuron's gate, at 1."""
    with masks(tower.slots, len(images_BCHW)) as ones:
        loss().backward()
    return [one_B1H.grad.squeeze(1) for one_B1H in ones]


@pytest.mark.parametrize("with_labels", [False, True])
def test_cross_entropy_scores_are_its_gates_derivatives(tower: Tower, with_labels: bool) -> None:
    (images_BCHW,) = random_batches(1)
    classifier_EC = F.normalize(torch.randn(48, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    labels = [0, 1, 2, 3, 4, 0] if with_labels else None
    label_B = torch.tensor(labels) if labels else None
    expected = by_masks(
        tower,
        images_BCHW,
        lambda: zero_shot_cross_entropy(tower.encode_image(images_BCHW), classifier_EC, label_B) / len(images_BCHW),
    )
    found = score_cross_entropy(tower, [images_BCHW], classifier_EC, labels, True)
    for found_H, expected_BH in zip(found, expected, strict=True):
        torch.testing.assert_close(found_H, expected_BH.abs().mean(dim=0), rtol=1e-3, atol=1e-6)


def test_kl_scores_are_half_the_square_of_its_gates_derivatives(tower: Tower) -> None:
    (images_BCHW,) = random_batches(1)
    noise_BB = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    dense_BD = tower.feature(images_BCHW)
    expected = by_masks(
        tower, images_BCHW, lambda: sampled_surprisal(tower.feature(images_BCHW), dense_BD, 15.0, noise_BB)
    )
    found = score_kl(tower, [images_BCHW], 15.0, 3)
    for found_H, expected_BH in zip(found, expected, strict=True):
        torch.testing.assert_close(found_H, expected_BH.square().mean(dim=0) / 2, rtol=1e-3, atol=1e-9)
    # Where images hardly resemble each other nearly every draw is the image itself.
    first, other = (score_kl(tower, [images_BCHW], 1.0, seed)[0] for seed in (3, 4))
    assert not torch.equal(first, other)


def test_variance_is_that_of_all_tokens_and_survives_a_large_mean() -> None:
    toy, seen = Toy(0, 1, 2), []
    toy.blocks[1][0].fc1.bias += 1e3  # GELU hands it on
    toy.slots[1].out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        for x_BTD in (toy_input(), 2 * toy_input(), toy_input()[:1]):
            toy(x_BTD)
    a_NH = torch.cat([activation.flatten(0, 1) for activation in seen]).double()
    expected_H = a_NH.var(dim=0, correction=0)
    torch.testing.assert_close(scorer.scores()[1], expected_H.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_every_neuron_has_its_in_projection_rows(name: str) -> None:
    _, slot = make_block(name)
    whole_HD = neuron_rows(slot)
    assert whole_HD.shape == (H, D * (2 if "gate" in slot.layout else 1))
    slot.keep(torch.tensor([7, 2]))
    assert torch.equal(neuron_rows(slot), whole_HD[[7, 2]])


@pytest.mark.parametrize("criterion", ["variance", "magnitude", "diversity", "random"])
def test_these_take_no_backward_pass(tower: Tower, criterion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda *_: pytest.fail("a backward pass"))
    ran = []
    handle = tower.visual.register_forward_hook(lambda *_: ran.append(1))
    scores = score(tower, random_batches(), ScoreSettings(criterion=criterion))
    handle.remove()
    assert len(ran) == (2 if criterion == "variance" else 0)
    assert [(score_H.shape, score_H.dtype) for score_H in scores] == [((256,), torch.float32)] * 5
    assert not any(module._forward_pre_hooks for module in tower.model.modules())


def test_a_neuron_that_never_varies_ranks_last_and_a_block_of_them_is_refused() -> None:
    toy = Toy(0, 1, 2)
    toy.blocks[1][0].fc1.weight[5] = 0
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        toy(toy_input())
    assert scorer.scores()[1].argmin() == 5
    toy.blocks[1][0].fc1.weight.zero_()
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        toy(toy_input())
    assert "block blocks.1: all scores are zero" in refusal(lambda: scorer.scores())


@pytest.mark.parametrize("criterion", ["entropy", "kl", "reconstruction", "variance"])
def test_activations_that_are_not_finite_are_one_line(tower: Tower, criterion: Any) -> None:
    tower.slots[0].out_projection.bias.fill_(torch.inf)
    message = refusal(lambda: score(tower, random_batches(), ScoreSettings(criterion=criterion)))
    assert message.startswith("score.criterion: ")
    assert "model.precision: fp32" in message


def test_cross_entropy_without_a_text_tower_is_refused() -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    tower = build_tower(ModelSettings(frame="timm", name="vit_base_patch16_224", kwargs=kwargs))
    settings = ScoreSettings(criterion="cross_entropy", classes=("a", "b"))
    message = refusal(lambda: class_embeddings(tower, settings))
    assert message.startswith("score.criterion: cross_entropy: vit_base_patch16_224 has no text encoder")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score.criterion=cross_entropy"], "score: classes: missing"),
        (["score.criterion=cross_entropy", "score.classes=[a]"], "score.classes"),
        (["score.template=a photo"], "template: 'a photo': has no {c}"),
        (
            ["score.criterion=cross_entropy", "score.classes=[a, b]", "score.labels=folders"],
            "score.labels: folders: ROOT holds images in 1 folders, score.classes names 2",
        ),
        (["score.labels=true"], "score.labels"),
        (["score.criterion=hessian"], "'cross_entropy', 'kl', 'reconstruction', 'variance'"),
    ],
)
def test_mistakes_are_one_line(
    prune_yaml: Path, golden_images: Path, tmp_path: Path, call: Call, words: list[str], says: str
) -> None:
    settings = [word for override in words for word in ("--set", override)]
    code, _, err = call("main_score.py", "--config_file", prune_yaml, *settings)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says.replace("ROOT", str(golden_images)) in line
    assert not (tmp_path / "out").exists()


def test_two_processes_equal_one(golden_images: Path, tmp_path: Path, launch: Callable[..., Any]) -> None:
    (tmp_path / "two").mkdir()
    done = launch(2, "tests/score_many.py", golden_images, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    score_many(str(golden_images), tmp_path / "one")
    for criterion in ("cross_entropy", "labels", "kl", "reconstruction", "variance"):
        one, two = (load_scores(tmp_path / name / f"{criterion}.safetensors")[0] for name in ("one", "two"))
        for one_H, two_H in zip(one, two, strict=True):
            torch.testing.assert_close(one_H, two_H, rtol=1e-4, atol=5e-5 * one_H.max().item())

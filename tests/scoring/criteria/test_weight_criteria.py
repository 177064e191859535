"""Laws of the criteria that look at weights alone, or at nothing: magnitude, diversity, random.

D width, H hidden width.
"""

import pytest
import torch
from helpers.mlp_layouts import ALL, D, H, make_block
from torch import Tensor

from amp.scoring.criteria._weights import neuron_rows
from amp.scoring.criteria.diversity import weight_diversity
from amp.scoring.criteria.magnitude import weight_magnitude
from amp.scoring.criterion import score
from amp.settings.score import ScoreSettings
from amp.towers import Tower


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
def test_every_neuron_has_its_in_projection_rows(name: str) -> None:
    _, slot = make_block(name)
    whole_HD = neuron_rows(slot)
    assert whole_HD.shape == (H, D * (2 if "gate" in slot.layout else 1))
    slot.keep(torch.tensor([7, 2]))
    assert torch.equal(neuron_rows(slot), whole_HD[[7, 2]])


def test_magnitude_does_not_change_when_a_neuron_is_rescaled() -> None:
    in_HD, out_DH = normal(7, 4), normal(4, 7, seed=1)
    found_H, scale_H = weight_magnitude(in_HD, out_DH), torch.rand(7, generator=torch.Generator().manual_seed(2)) + 0.1
    torch.testing.assert_close(weight_magnitude(in_HD * scale_H[:, None], out_DH / scale_H), found_H)
    torch.testing.assert_close(weight_magnitude(3 * in_HD, out_DH), 3 * found_H)
    assert found_H[2].item() == pytest.approx(sum(in_HD[2] ** 2).sqrt() * sum(out_DH[:, 2] ** 2).sqrt())


def greedy_order(in_HD: Tensor) -> list[int]:
    """Gram-Schmidt, one neuron at a time; anew with those that are left once nothing is left of them."""
    rest, order = list(range(len(in_HD))), []
    while rest:
        residual_HD = in_HD.double().clone()
        for _ in range(min(len(rest), in_HD.shape[1])):
            best = max(rest, key=lambda j: residual_HD[j].norm().item())
            direction_D = residual_HD[best] / residual_HD[best].norm()
            residual_HD -= torch.outer(residual_HD @ direction_D, direction_D)
            rest.remove(best)
            order.append(best)
    return order


@pytest.mark.parametrize(("neurons", "width"), [(5, 8), (8, 5), (23, 5)])
def test_diversity_is_the_order_of_gram_schmidt(neurons: int, width: int) -> None:
    in_HD = normal(neurons, width)
    score_H = weight_diversity(in_HD)
    assert score_H.argsort(descending=True).tolist() == greedy_order(in_HD)
    assert score_H.max() == 1
    torch.testing.assert_close(score_H.sort().values, torch.arange(1, neurons + 1) / neurons)


def test_a_copy_of_a_neuron_comes_last() -> None:
    in_HD = normal(4, 9)
    in_HD[3] = in_HD[1] * 0.99
    assert weight_diversity(in_HD).argmin() == 3


def test_random_scores_are_a_function_of_the_seed(tower: Tower) -> None:
    state = torch.get_rng_state()
    first, again, other = (score(tower, [], ScoreSettings(criterion="random", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(score_H) for score_H in first] == [256] * 5
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])

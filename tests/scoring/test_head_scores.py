"""Laws of the scores of attention heads."""

import itertools

import torch

from amp.scoring.heads import losses

HEADS, WIDTH, OUT = 4, 3, 5


def test_heads_go_by_the_least_loss_that_a_refit_leaves() -> None:
    """Against least squares on the kept heads, anew for each set of them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    size = HEADS * WIDTH
    mixed = normal(size, size)
    covariance, weight, root = mixed @ mixed.T, normal(OUT, size), normal(OUT, OUT)
    sensitivity, damping = root @ root.T, 1e-2
    damped = covariance + damping * covariance.diagonal().mean() * torch.eye(size)

    def loss(gone: tuple[int, ...]) -> float:
        kept = [i for i in range(size) if i // WIDTH not in gone]
        left = damped - damped[:, kept] @ torch.linalg.pinv(damped[kept][:, kept]) @ damped[kept]
        return float((sensitivity * (weight @ left @ weight.T)).sum())

    found = losses(covariance, weight, sensitivity, HEADS, damping)
    order = found.argsort().tolist()
    for number in range(1, HEADS + 1):
        gone = tuple(order[:number])
        best = min(loss((*gone[:-1], other)) for other in range(HEADS) if other not in gone[:-1])
        assert abs(loss(gone) - best) <= 1e-9 * best
    increments = [b - a for a, b in itertools.pairwise([0.0, *(loss(tuple(order[: n + 1])) for n in range(HEADS))])]
    bounded = torch.tensor(increments).cummax(0).values
    torch.testing.assert_close(found[order], bounded, rtol=1e-5, atol=0)

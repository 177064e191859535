"""Damped least squares for one out-projection, from sums over tokens, so that any number of processes gives one answer.

N tokens, E width of what enters the out-projection, D of its output.
"""

import torch
from torch import Tensor

from amp.errors import UserError
from amp.run.world import world
from amp.statistics.moments import product


class LeastSquares:
    """Sums of what enters an out-projection, and of what is missing of its output.

    Args:
        entering, output: E and D.
        name: of the block, for messages.
    """

    def __init__(self, entering: int, output: int, device: torch.device, name: str) -> None:
        self._name = name

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self._count, self._missing_squared, self._asked_squared = zeros(), zeros(), zeros()
        self._total_E, self._missing_D, self._asked_D = zeros(entering), zeros(output), zeros(output)
        self._square_EE, self._cross_ED = zeros(entering, entering), zeros(entering, output)

    def add(self, entering_NE: Tensor, missing_ND: Tensor, asked_ND: Tensor, weight: float = 1.0) -> None:
        """Some tokens.

        Args:
            missing_ND: of the output, fp32. asked_ND: the output that is asked for, fp32, for the errors.
            weight: as how many each counts.
        """
        self._count += weight * len(entering_NE)
        self._total_E += weight * entering_NE.sum(0, dtype=torch.float32)
        self._missing_D += weight * missing_ND.sum(0)
        self._asked_D += weight * asked_ND.sum(0)
        self._missing_squared += weight * missing_ND.square().sum()
        self._asked_squared += weight * asked_ND.square().sum()
        self._square_EE += weight * product(entering_NE, entering_NE)
        self._cross_ED += weight * product(entering_NE.float(), missing_ND)

    def solve(self, damping: float, constant: bool) -> tuple[Tensor, Tensor, dict[str, float]]:
        """What to add to the weight (D, E) and to the bias (D,), fp64, and the error of the output.

        The error is `{without, with}`, as of `Compensator.errors`, as a share of the variance of what is asked for.
        The sums are used up.

        Args:
            damping: added to the covariance's diagonal, as a share of its mean.
            constant: whether a bias can take one.
        Raises:
            UserError: what enters is not finite, or its covariance is singular, which a damping above zero cures.
        """
        sums = (self._count, self._missing_squared, self._asked_squared, self._total_E, self._missing_D, self._asked_D)
        count, missing, asked, total_E, missing_D, asked_D = (world().sum(own) for own in sums)
        square_EE, cross_ED = world().sum(self._square_EE).div_(count), world().sum(self._cross_ED).div_(count)
        if not bool(square_EE.isfinite().all() & cross_ED.isfinite().all()):
            text = f"block {self._name}: an activation is not finite; try model.precision: fp32"
            raise UserError("prune.compensation", text)
        mean_E, mean_D = (total_E / count * constant, missing_D / count * constant)
        covariance_EE = square_EE.addr_(mean_E, mean_E, alpha=-1)
        factor_EE = factor(covariance_EE, damping, self._name)
        centred_ED = cross_ED.addr_(mean_E, mean_D, alpha=-1)
        change_ED = torch.cholesky_solve(centred_ED, factor_EE)
        error = missing / count - mean_D.square().sum()
        left = error - 2 * (change_ED * centred_ED).sum() + ((covariance_EE @ change_ED) * change_ED).sum()
        variance = asked / count - (asked_D / count * constant).square().sum()
        errors = {"without": float(missing / count / variance), "with": float(left / variance)}
        return change_ED.T, mean_D - mean_E @ change_ED, errors


def factor(covariance_HH: Tensor, damping: float, name: str) -> Tensor:
    """The Cholesky factor of a damped covariance, fp64.

    Args:
        damping: added to the diagonal, as a share of its mean. name: of the block, for messages.
    Raises:
        UserError: the covariance is singular, which a damping above zero cures.
    """
    damped_HH = covariance_HH.clone()
    damped_HH.diagonal().add_(damping * covariance_HH.diagonal().mean())
    factor_HH, failed = torch.linalg.cholesky_ex(damped_HH)
    if int(failed):
        raise UserError(
            "prune.damping",
            f"{damping}: the activations of block {name} are linearly dependent, or some are constant; "
            "use a damping above 0, such as 1e-4",
        )
    return factor_HH

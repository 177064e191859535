"""MAG"""

from torch import Tensor


def weight_magnitude(in_HD: Tensor, out_DH: Tensor) -> Tensor:
    """(H,) fp32: norm of each neuron's in-projection row times norm of its out-projection column.

    The product is what rescaling a neuron between its two layers leaves as it was; structured magnitude pruning.
    """
    return in_HD.float().norm(dim=1) * out_DH.float().norm(dim=0)

"""Products of activations and gradients, summed over tokens without being laid out in memory.

B images, T tokens, H hidden width.
"""

import functools
import subprocess
from collections.abc import Callable

import torch
from torch import Tensor

# Bytes of products at a time where they come one chunk after another: what the cache next to a core, or a GPU's, holds.
CORE_CACHE, GPU_CACHE = 2**20, 2**24


def sums_over_tokens(activation_BTH: Tensor, gradient_BTH: Tensor) -> Tensor:
    """(B, H) fp32: the sum over an image's tokens of a * g, products and sums in fp32 whatever the inputs' dtype.

    On a GPU one kernel reads both once and writes the sums; elsewhere, and on a GPU for which nothing can be compiled,
    a few images at a time go through the cache.

    Args:
        activation_BTH, gradient_BTH: of one shape; there may be several dimensions of tokens.
    """
    a_BTH, g_BTH = (tensor.detach().flatten(1, -2) for tensor in (activation_BTH, gradient_BTH))
    fused = _fused() if a_BTH.is_cuda else None
    if fused is not None:
        return fused(a_BTH, g_BTH)
    sums_BH = torch.empty(len(a_BTH), a_BTH.shape[2], device=a_BTH.device)
    if a_BTH.is_meta:
        return sums_BH
    at_once = max(1, (CORE_CACHE if a_BTH.is_cpu else GPU_CACHE) // (4 * a_BTH[0].numel()))
    for a_CTH, g_CTH, sums_CH in zip(*(t.split(at_once) for t in (a_BTH, g_BTH, sums_BH)), strict=True):
        torch.sum(a_CTH.float() * g_CTH.float(), dim=1, out=sums_CH)
    return sums_BH


@functools.cache
def _fused() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The kernel, or None where Triton or its compiler is missing."""
    try:
        from triton.errors import TritonError

        from amp.scoring._contraction_kernel import contract
    except ImportError:
        return None
    try:
        contract(*torch.ones(2, 1, 1, 1, device="cuda").unbind())
    except (OSError, RuntimeError, subprocess.SubprocessError, TritonError):
        return None
    return contract

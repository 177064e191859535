"""The sum over tokens of a * g as one Triton kernel; imported where there is a GPU.

B images, T tokens, H hidden width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, NEURONS = 16, 128  # of the tile that a program holds


@triton.jit  # type: ignore[untyped-decorator]
def _contract(a, g, sums, num_tokens, width, TOKENS: tl.constexpr, NEURONS: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(1).to(tl.int64)
    neurons = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    total = tl.zeros((TOKENS, NEURONS), tl.float32)
    for first in range(0, num_tokens, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        places = (image * num_tokens + tokens[:, None]) * width + neurons[None, :]
        inside = (tokens[:, None] < num_tokens) & (neurons[None, :] < width)
        a_tile = tl.load(a + places, mask=inside, other=0.0).to(tl.float32)
        g_tile = tl.load(g + places, mask=inside, other=0.0).to(tl.float32)
        total += a_tile * g_tile
    tl.store(sums + image * width + neurons, tl.sum(total, axis=0), mask=neurons < width)


def contract(a_BTH: Tensor, g_BTH: Tensor) -> Tensor:
    """(B, H) fp32; see `amp.scoring.contraction.sums_over_tokens`."""
    a_BTH, g_BTH = a_BTH.contiguous(), g_BTH.contiguous()
    num_images, num_tokens, width = a_BTH.shape
    sums_BH = torch.empty(num_images, width, device=a_BTH.device)
    grid = (triton.cdiv(width, NEURONS), num_images)
    with torch.cuda.device_of(a_BTH):
        _contract[grid](a_BTH, g_BTH, sums_BH, num_tokens, width, TOKENS, NEURONS, enable_fp_fusion=True)
    return sums_BH

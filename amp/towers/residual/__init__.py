"""What the two branches of a transformer block add to its hidden states, found by a probe: attention, then the MLP.

    mid = x + gain_1 * attention(x),  out = mid + gain_2 * mlp(mid)

with the gains of LayerScale, or 1. A branch ends in a Linear, its out-projection. Its output is moved a little, and how
the hidden states answer tells its gain, whatever the library calls it.

B images, T tokens, D width of the tower, E width of what enters an out-projection.
"""

from amp.towers.residual.branches import Branch, MlpRun, run_mlp
from amp.towers.residual.calls import BlockCall, block_calls, entering_blocks
from amp.towers.residual.find import find_branches

__all__ = ["BlockCall", "Branch", "MlpRun", "block_calls", "entering_blocks", "find_branches", "run_mlp"]

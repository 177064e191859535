"""Sequential refit: block after block, each on what the pruned blocks before it hand on.

The out-projections of a block, of attention and then of the MLP, are asked for the dense network's output and for most
of what the hidden states are short of by then,

    dense output + 0.7 (dense hidden states - own hidden states),

by least squares, damped towards the weights that are there. So later blocks make up for what earlier ones have lost,
where `ridge` fits each block to dense inputs and never sees it. Tokens that the feature reads, such as a class token,
count 16 times: one among many, it would hardly be heard, and a larger weight fits the noise of few images.

B images, T tokens, D width of the tower, E width of what enters an out-projection.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amp.data.batches import Batches
from amp.errors import UserError
from amp.pruning.measure.store import InputStore
from amp.pruning.refit._least_squares import LeastSquares
from amp.pruning.refit._tuning import MlpTokens
from amp.pruning.refit.ridge import normed, plain
from amp.run.console import progress
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower
from amp.towers.residual import Branch, block_calls, entering_blocks, find_branches, run_mlp

__all__ = ["normed", "plain", "refit_whole"]

DRIFT = 0.7  # of what the hidden states are short of, the share that a branch is asked to make up for
READ_WEIGHT = 16.0  # of a token that the feature reads
OWN, MID = 2, 3  # in the store: hidden states of the pruned network; the dense ones between a block's branches
PASSES = 5  # over the images, for each block; 4 where nothing is tuned
PROBED_IMAGES = 2


def refit_whole(
    tower: Tower,
    kept: Sequence[Tensor],
    batches: Batches | Sequence[Tensor],
    settings: SearchSettings,
    store: InputStore,
    saved: Callable[[str], SavedSums] | None,
) -> list[dict[str, float]]:
    """Slices a dense tower for good, first block first, and refits it.

    Args:
        kept: of each of the tower's `units` what stays, ascending.
        batches: calibration images (B, C, S, S), this process's share.
        store: of the hidden states of all images: four times what a block hands on.
        saved: where the weights of blocks that are done are kept, by a name; None: nowhere.
    Returns:
        the error of every block's MLP before and after its refit, as of `Compensator.errors`.
    Raises:
        UserError: blocks that are no chain, or a branch that does not add to the hidden states.
    """
    with torch.no_grad():
        refit = _Refit(tower, batches, settings, store)
        errors = []
        for block, mlp in enumerate(tower.slots):
            refit.see_dense(block)
            for slot, indices_K in zip(tower.units, kept, strict=True):
                if slot.name == mlp.name:
                    slot.keep(indices_K)
            weights = refit.fit(block, None if saved is None else saved(f"refitted_{block}"))
            errors.append(dict(zip(("without", "with"), weights[-1].tolist(), strict=True)))
            refit.hand_on(block)
        refit.close()
    return errors


class _Refit:
    """The hidden states of all images, in the dense network and in the pruned one, as they enter one block."""

    def __init__(
        self, tower: Tower, batches: Batches | Sequence[Tensor], settings: SearchSettings, store: InputStore
    ) -> None:
        self._tower, self._settings, self._store = tower, settings, store
        self._num_batches = len(batches)
        self._bar = progress(None, "refit", "batch", total=PASSES * len(tower.blocks) * len(batches))
        for number, images_BCSS in enumerate(batches):
            images_BCSS = world().take(images_BCSS).to(tower.dtype)
            if number == 0:
                self._calls = block_calls(tower, images_BCSS)
                self._branches = self._find_branches(images_BCSS[:PROBED_IMAGES])
            x_BTD = entering_blocks(tower, images_BCSS)
            self._read = tower.read_tokens if len(x_BTD) == len(images_BCSS) else ()
            for place in (0, OWN):
                store.put((place, number), x_BTD)

    def _find_branches(self, few_BCSS: Tensor) -> list[tuple[Branch | None, Branch]]:
        found = []
        entering: list[Tensor] = []
        calls = block_calls(self._tower, few_BCSS, entering.append)
        for slot, call, x_BTD in zip(self._tower.slots, calls, entering, strict=True):
            attention, mlp = find_branches(call, slot, x_BTD)
            if mlp is None:
                text = f"sequential: the MLP of block {slot.name} does not add to the hidden states; ridge can refit it"
                raise UserError("prune.compensation", text)
            found.append((attention, mlp))
        return found

    def close(self) -> None:
        """Forgets the hidden states."""
        self._bar.close()
        self._store.clear()

    def _images(self, *places: int) -> Iterator[tuple[Any, ...]]:
        """(number, hidden states of each place) of every batch."""
        for number in range(self._num_batches):
            yield number, *(self._store.get((place, number)) for place in places)
            self._bar.update()

    def see_dense(self, block: int) -> None:
        """Runs a block of the dense network: what it hands on takes the place of what entered the one before."""
        call, (_, mlp) = self._calls[block], self._branches[block]
        for number, x_BTD in self._images(block % 2):
            run = run_mlp(call, x_BTD, mlp, self._tower.slots[block])
            self._store.put((MID, number), run.mid_BTD)
            self._store.put((1 - block % 2, number), run.out_BTD)

    def fit(self, block: int, saved: SavedSums | None) -> list[Tensor]:
        """Refits both branches of a sliced block, or takes over what an earlier run has found; the errors come last."""
        (attention, mlp), slot = self._branches[block], self._tower.slots[block]
        linears = [*([attention.linear] if attention else []), *slot.modules]

        def work() -> list[Tensor]:
            if attention is not None:
                self._fit_attention(block, attention)
            errors = self._fit_mlp(block, mlp)
            own = [p.detach() for linear in linears for p in linear.parameters(recurse=False)]
            return [*own, torch.tensor([errors["without"], errors["with"]], dtype=torch.float64)]

        found = work() if saved is None else saved.kept("weights", work)
        values = iter(found)
        for linear in linears:
            for own in linear.parameters(recurse=False):
                own.copy_(next(values).to(own))
        return found

    def _fit_attention(self, block: int, branch: Branch) -> None:
        call, sums = self._calls[block], self._sums(block, branch)
        for _, dense_BTD, own_BTD, mid_BTD in self._images(block % 2, OWN, MID):
            entering_BTE = branch.entering(partial(call, own_BTD))
            added_BTD = _output(branch, entering_BTE)
            wanted_BTD = mid_BTD.float() - dense_BTD.float()
            missing_BTD = wanted_BTD + DRIFT * (dense_BTD.float() - own_BTD.float()) - added_BTD
            sums.add(entering_BTE, missing_BTD, wanted_BTD)
        self._apply(branch, sums)

    def _fit_mlp(self, block: int, branch: Branch) -> dict[str, float]:
        """In closed form; with steps of gradient descent on its in-projections too, and in closed form again."""
        steps, slot = self._settings.refit_steps, self._tower.slots[block]
        tokens = MlpTokens(self._read, seed=block) if steps else None
        errors = self._solve_mlp(block, branch, tokens)
        if tokens is not None and tokens.tune(slot, branch.gain_D.float(), steps):
            errors["with"] = self._solve_mlp(block, branch, None)["with"]
        return errors

    def _solve_mlp(self, block: int, branch: Branch, tokens: MlpTokens | None) -> dict[str, float]:
        call, sums = self._calls[block], self._sums(block, branch)
        for _, out_BTD, own_BTD, mid_BTD in self._images(1 - block % 2, OWN, MID):
            run = run_mlp(call, own_BTD, branch, self._tower.slots[block])
            wanted_BTD = out_BTD.float() - mid_BTD.float()
            asked_BTD = wanted_BTD + DRIFT * (mid_BTD.float() - run.mid_BTD.float())
            missing_BTD = asked_BTD + run.mid_BTD.float() - run.out_BTD.float()
            sums.add(run.entering_BTE.view(*out_BTD.shape[:2], -1), missing_BTD, wanted_BTD)
            if tokens is not None:
                tokens.add(run.tokens_BTD.view(out_BTD.shape), asked_BTD)
        return self._apply(branch, sums)

    def hand_on(self, block: int) -> None:
        """Runs the refitted block of the pruned network."""
        for number, own_BTD in self._images(OWN):
            self._store.put((OWN, number), self._calls[block](own_BTD))

    def _sums(self, block: int, branch: Branch) -> LeastSquares:
        linear, name = branch.linear, self._tower.slots[block].name
        size = linear.in_features, linear.out_features
        return LeastSquares(*size, linear.weight.device, name, self._read, READ_WEIGHT)

    def _apply(self, branch: Branch, sums: LeastSquares) -> dict[str, float]:
        linear = branch.linear
        change_DE, shift_D, errors = sums.solve(self._settings.damping, constant=linear.bias is not None)
        # What was missing is that of the hidden states; a channel that adds nothing to them stays as it is.
        gain_D = branch.gain_D.to(change_DE)
        inverse_D = torch.where(gain_D.abs() > 1e-6 * gain_D.abs().max(), 1 / gain_D, 0.0)
        linear.weight = _changed(linear.weight, inverse_D[:, None] * change_DE)
        if linear.bias is not None:
            linear.bias = _changed(linear.bias, inverse_D * shift_D)
        return errors


def _output(branch: Branch, entering_BTE: Tensor) -> Tensor:
    """(B, T, D) fp32: what a branch adds to the hidden states."""
    linear = branch.linear
    bias = None if linear.bias is None else linear.bias.float()
    output_BTD = nn.functional.linear(entering_BTE.float(), linear.weight.float(), bias)
    return branch.gain_D.to(output_BTD) * output_BTD


def _changed(old: Tensor, change: Tensor) -> nn.Parameter:
    return nn.Parameter((old.double() + change).to(old.dtype), requires_grad=old.requires_grad)

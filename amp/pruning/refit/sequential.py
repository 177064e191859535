"""Sequential refit: block by block, each with the outputs of the pruned blocks before it as input.

The out-projections of a block, of attention and then of the MLP, are asked for the dense network's output and for most
of what the hidden states are short of by then,

    dense output + 0.7 (dense hidden states - own hidden states),

by least squares, damped towards the weights that are there. So later blocks make up for what earlier ones have lost,
where `ridge` fits each block to dense inputs and never sees it. Tokens that the feature reads, such as a class token,
count 32 times: one among many, it would hardly be heard, and a larger weight fits the noise of few images. Views of an
image, which are crops of it, make such tokens more.

A block takes two passes over the images: one runs it as it is dense, and the pruned network up to its attention's
out-projection, which is then refitted; one makes what enters its MLP, of which some tokens are kept to refit that.

B images, T tokens, D width of the tower, E width of what enters an out-projection.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amp.data.augmentation import random_crops
from amp.data.batches import Batches
from amp.errors import UserError
from amp.pruning.measure.store import InputStore
from amp.pruning.refit._least_squares import LeastSquares
from amp.pruning.refit._rows import MlpTokens
from amp.pruning.refit._tuning import tune
from amp.pruning.refit.ridge import normed, plain
from amp.run.console import progress, say
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower
from amp.towers.mlps.slots import MlpSlot, Slot
from amp.towers.residual import Branch, block_calls, entering_blocks, find_branches, run_mlp

__all__ = ["normed", "plain", "refit_whole"]

DRIFT = 0.7  # of what the hidden states are short of, the share that a branch is asked to make up for
READ_WEIGHT = 32.0  # of a token that the feature reads
# In the store: hidden states of the dense network, behind the block and between its branches; of the pruned one, those
# that enter the block, and then those between its branches; and what enters an out-projection, and then an MLP.
DENSE, DENSE_MID, OWN, ENTERING = range(4)
PASSES = 2  # over the images, for each block
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
        store: of the hidden states of all views of the images: four times what a block hands on.
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
            own = [
                (slot, indices_K) for slot, indices_K in zip(tower.units, kept, strict=True) if slot.name == mlp.name
            ]
            refit.run_attention(block, own[:-1])
            for slot, indices_K in own:
                slot.keep(indices_K)
            weights = refit.fit(block, None if saved is None else saved(f"refitted_{block}"))
            errors.append(dict(zip(("without", "with"), weights[-1].tolist(), strict=True)))
        refit.close()
    return errors


class _Refit:
    """The hidden states of all views of the images, in the dense network and in the pruned one, about one block.

    A batch of the store is a view of a batch of images.
    """

    def __init__(
        self, tower: Tower, batches: Batches | Sequence[Tensor], settings: SearchSettings, store: InputStore
    ) -> None:
        self._tower, self._settings, self._store = tower, settings, store
        self._num_batches, self._taken = len(batches) * settings.refit_views, 0
        self._bar = progress(None, "refit", "batch", total=(1 + PASSES * len(tower.blocks)) * self._num_batches)
        for number, images_BCSS in enumerate(self._views(batches)):
            if number == 0:
                self._calls = block_calls(tower, images_BCSS)
                self._branches = self._find_branches(images_BCSS[:PROBED_IMAGES])
            x_BTD = entering_blocks(tower, images_BCSS)
            self._read = tower.read_tokens if len(x_BTD) == len(images_BCSS) else ()
            for place in (DENSE, OWN):
                store.put((place, number), x_BTD)
            self._bar.update()

    def _views(self, batches: Batches | Sequence[Tensor]) -> Iterator[Tensor]:
        """Each batch of images as it is, and then its crops."""
        generator = torch.Generator().manual_seed(0)
        for images_BCSS in batches:
            images_BCSS = world().take(images_BCSS).to(self._tower.dtype)
            yield images_BCSS
            for _ in range(1, self._settings.refit_views):
                yield random_crops(images_BCSS, generator)

    def _find_branches(self, few_BCSS: Tensor) -> list[tuple[Branch | None, Branch]]:
        found = []
        entering: list[Tensor] = []
        calls = block_calls(self._tower, few_BCSS, entering.append)
        for slot, call, x_BTD in zip(self._tower.slots, calls, entering, strict=True):
            attention, mlp = find_branches(call, slot, x_BTD)
            if mlp is None:
                text = f"sequential: block {slot.name} does not add its MLP output to the hidden states; use ridge"
                raise UserError("prune.compensation", text)
            found.append((attention, mlp))
        return found

    def close(self) -> None:
        """Forgets the hidden states."""
        self._bar.close()
        self._store.clear()

    def _batches(self, *places: int) -> Iterator[tuple[Any, ...]]:
        """(number, hidden states of each place) of every batch."""
        for number in range(self._num_batches):
            yield number, *(self._store.get((place, number)) for place in places)
            self._bar.update()

    def run_attention(self, block: int, heads: Sequence[tuple[Slot, Tensor]]) -> None:
        """Runs a block of the dense network, and the one before it and this one's attention of the pruned network.

        Args:
            heads: attention of which heads go, and those that stay.
        """
        (attention, mlp), slot, call = self._branches[block], self._tower.slots[block], self._calls[block]
        with _narrowed(heads):
            self._attention_sums = None if attention is None else _sums(attention.linear, slot)
        for number, dense_BTD, own_BTD in self._batches(DENSE, OWN):
            dense = run_mlp(call, dense_BTD, mlp, slot)
            self._store.put((DENSE_MID, number), dense.mid_BTD)
            self._store.put((DENSE, number), dense.out_BTD)
            if block:
                own_BTD = self._hand_on(block - 1, own_BTD, self._store.get((ENTERING, number)))
                self._store.put((OWN, number), own_BTD)
            if attention is None:
                continue
            branch_BTD = dense.mid_BTD.float() - dense_BTD.float()
            asked_BTD = branch_BTD + DRIFT * (dense_BTD.float() - own_BTD.float())
            with _narrowed(heads):
                entering_BTE = attention.entering(partial(call, own_BTD))
                self._add(attention, entering_BTE, asked_BTD)
            self._store.put((ENTERING, number), entering_BTE)

    def _add(self, attention: Branch, entering_BTE: Tensor, asked_BTD: Tensor) -> None:
        assert self._attention_sums is not None
        missing_BTD = asked_BTD - attention.output(entering_BTE)
        rows: list[tuple[float, slice | list[int]]] = [(1.0, slice(None)), (READ_WEIGHT - 1, list(self._read))]
        for weight, places in rows[: 1 + bool(self._read)]:
            entering_NE, missing_ND, asked_ND = (
                own[:, places].flatten(0, 1) for own in (entering_BTE, missing_BTD, asked_BTD)
            )
            self._attention_sums.add(entering_NE, missing_ND, asked_ND, weight)

    def _hand_on(self, block: int, mid_BTD: Tensor, tokens_BTD: Tensor) -> Tensor:
        """What a refitted block hands on, (B, T, D)."""
        _, output_ND = _run(self._tower.slots[block], tokens_BTD.flatten(0, 1))
        gain_D = self._branches[block][1].gain_D.to(output_ND)
        return mid_BTD + (gain_D * output_ND).view_as(mid_BTD)

    def fit(self, block: int, saved: SavedSums | None) -> list[Tensor]:
        """Refits both branches of a sliced block, or takes over what an earlier run has found; the errors come last."""
        (attention, _), slot = self._branches[block], self._tower.slots[block]
        linears = [*([attention.linear] if attention else []), *slot.modules]
        seen = []

        def work() -> list[Tensor]:
            if block and self._taken == block:
                say(
                    f"resuming the refit: blocks 0 to {block - 1} of {len(self._branches)} were refitted by the "
                    "last run"
                )
            if attention is not None and self._attention_sums is not None:
                self._apply(attention, self._attention_sums)
            tokens = MlpTokens(self._read, READ_WEIGHT, self._settings.refit_views, seed=block)
            seen.append(tokens)
            self._enter_mlp(block, tokens)
            errors = self._fit_mlp(block, tokens)
            own = [p.detach() for linear in linears for p in linear.parameters(recurse=False)]
            return [*own, torch.tensor([errors["without"], errors["with"]], dtype=torch.float64)]

        found = work() if saved is None else saved.kept("weights", work)
        values = iter(found)
        for linear in linears:
            for own in linear.parameters(recurse=False):
                own.copy_(next(values).to(own))
        if not seen:
            self._enter_mlp(block, None)
            self._taken += 1
        return found

    def _enter_mlp(self, block: int, tokens: MlpTokens | None) -> None:
        """Goes from what enters the attention's out-projection to what enters the MLP, some of which `tokens` keeps."""
        (attention, mlp), slot, call = self._branches[block], self._tower.slots[block], self._calls[block]
        for number, own_BTD, dense_BTD, dense_mid_BTD in self._batches(OWN, DENSE, DENSE_MID):
            if attention is not None and mlp.norm is not None:
                mid_BTD = attention.added(own_BTD, self._store.get((ENTERING, number)))
                tokens_BTD = mlp.norm(mid_BTD)
            else:
                run = run_mlp(call, own_BTD, mlp, slot)
                mid_BTD, tokens_BTD = run.mid_BTD, run.tokens_BTD.view_as(run.mid_BTD)
            self._store.put((OWN, number), mid_BTD)
            self._store.put((ENTERING, number), tokens_BTD)
            if tokens is not None:
                branch_BTD = dense_BTD.float() - dense_mid_BTD.float()
                asked_BTD = branch_BTD + DRIFT * (dense_mid_BTD.float() - mid_BTD.float())
                tokens.add(tokens_BTD, asked_BTD, number // self._settings.refit_views)

    def _fit_mlp(self, block: int, tokens: MlpTokens) -> dict[str, float]:
        """In closed form; with steps of gradient descent on its in-projections too, and in closed form again."""
        branch, slot, steps = self._branches[block][1], self._tower.slots[block], self._settings.refit_steps
        errors = self._solve_mlp(branch, slot, tokens)
        if steps and tune(slot, branch.gain_D.float(), tokens.sorts, steps, seed=block):
            errors["with"] = self._solve_mlp(branch, slot, tokens)["with"]
        return errors

    def _solve_mlp(self, branch: Branch, slot: MlpSlot, tokens: MlpTokens) -> dict[str, float]:
        sums = _sums(branch.linear, slot)
        for rows in tokens.sorts:
            for tokens_ND, asked_ND in rows.own():
                entering_NE, output_ND = _run(slot, tokens_ND.to(branch.linear.weight.dtype))
                output_ND = branch.gain_D.float() * output_ND.float()
                sums.add(entering_NE, asked_ND - output_ND, asked_ND, rows.weight)
        return self._apply(branch, sums)

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


@contextmanager
def _narrowed(units: Sequence[tuple[Slot, Tensor]]) -> Iterator[None]:
    """Units of some slots alone, within the block of code."""
    with ExitStack() as narrow:
        for slot, indices_K in units:
            narrow.enter_context(slot.narrowed(indices_K))
        yield


def _sums(linear: nn.Linear, slot: MlpSlot) -> LeastSquares:
    return LeastSquares(linear.in_features, linear.out_features, linear.weight.device, slot.name)


def _run(slot: MlpSlot, tokens_ND: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the MLP's out-projection, (N, E), and what that gives, (N, D)."""
    seen: list[Tensor] = []
    handle = slot.out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        output_ND = slot.run(tokens_ND)
    finally:
        handle.remove()
    return seen[0].view(len(tokens_ND), -1), output_ND


def _changed(old: Tensor, change: Tensor) -> nn.Parameter:
    return nn.Parameter((old.double() + change).to(old.dtype), requires_grad=old.requires_grad)

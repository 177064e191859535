"""The out-projections of a model that is pruned already, refitted to the dense model's."""

import torch

from amp.data.listing import Listing
from amp.errors import UserError
from amp.models.folder import read_folder_config, save_tower
from amp.pruning.measure.networks import keep_units, rank
from amp.pruning.measure.open import calibration_batches
from amp.pruning.refit import CALIBRATION, calibration_sums, open_compensation
from amp.pruning.report import describe_errors
from amp.run.console import reproduce, say
from amp.run.files import model_files
from amp.run.run import Run
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.saved_sums import forget_sums
from amp.towers import build_tower, in_order, with_heads


def refit_pruned(run: Run[PruneConfig], listing: Listing) -> None:
    """Writes compensated/: the neurons of pruned/, compensated as `prune.compensation` says.

    Raises:
        UserError: there is no pruned/, or it is of another dense model than the settings'.
    """
    pruned = read_folder_config(run.path("pruned"))
    run = run.with_frame(pruned.base["frame"])
    if run.done(*model_files("compensated")):
        return
    tower = build_tower(run.config.model, str(world().device))
    tower = with_heads(tower) if pruned.heads else tower
    if pruned.kept is None or tower.difference(pruned.base):
        name = run.config.model.name
        raise UserError("--compensate_only", f"{run.path('pruned')}: was not pruned from {name}")
    # Scores by which what was kept comes first, in its own order.
    chosen = [
        torch.zeros(count).index_fill(0, torch.tensor(indices), 1.0)
        for count, indices in zip(tower.counts, in_order(pruned.kept, pruned.heads or ()), strict=True)
    ]
    orders = [slot.inputs_of(rank(chosen_U)) for slot, chosen_U in zip(tower.units, chosen, strict=True)]
    compensation = open_compensation(
        tower, orders, run.config.prune, lambda: calibration_batches(run.config, tower, listing), calibration_sums(run)
    )
    _, errors = keep_units(tower, chosen, pruned.counts, compensation)
    say(describe_errors(errors))
    if world().is_main:
        provenance = {**run.header, "pruned": pruned.provenance}
        command = reproduce("main_prune.py")
        save_tower(tower, pruned.kept, provenance, run.path("compensated"), command=command)
    world().from_main(lambda: forget_sums(run.path(CALIBRATION)))
    say(f"wrote {run.path('compensated')}")

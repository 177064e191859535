"""The out-projections of a model that is pruned already, refitted to the dense model's."""

import torch

from amp.errors import UserError
from amp.models.folder import read_folder_config, save_tower
from amp.pruning.measure.networks import keep_neurons, rank
from amp.pruning.measure.open import calibration_batches
from amp.pruning.refit import CALIBRATION, calibration_sums, open_compensation
from amp.pruning.report import describe_errors
from amp.run.console import reproduce, say
from amp.run.run import Run
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.saved_sums import forget_sums
from amp.towers import build_tower


def refit_pruned(run: Run[PruneConfig]) -> None:
    """Writes compensated/: the neurons of pruned/, compensated as `prune.compensation` says.

    Raises:
        UserError: there is no pruned/, or it is of another dense model than the settings'.
    """
    pruned = read_folder_config(run.path("pruned"))
    run = run.with_frame(pruned.base["frame"])
    if run.done("compensated/config.json", "compensated/model.safetensors"):
        return
    tower = build_tower(run.config.model, str(world().device))
    if pruned.kept is None or tower.difference(pruned.base):
        name = run.config.model.name
        raise UserError("--compensate_only", f"{run.path('pruned')}: its kept neurons are not those of {name}")
    # Scores by which the neurons that were kept come first, in their own order.
    chosen = [
        torch.zeros(width).index_fill(0, torch.tensor(indices), 1.0)
        for width, indices in zip(tower.widths, pruned.kept, strict=True)
    ]
    orders = [rank(chosen_H) for chosen_H in chosen]
    compensation = open_compensation(
        tower, orders, run.config.prune, lambda: calibration_batches(run.config, tower), calibration_sums(run)
    )
    _, errors = keep_neurons(tower, chosen, pruned.widths, compensation)
    say(describe_errors(errors))
    if world().is_main:
        provenance = {**run.header, "pruned": pruned.provenance}
        command = reproduce("main_prune.py")
        save_tower(tower, pruned.kept, provenance, run.path("compensated"), command=command)
    world().from_main(lambda: forget_sums(run.path(CALIBRATION)))
    say(f"wrote {run.path('compensated')}")

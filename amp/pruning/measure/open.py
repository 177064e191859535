"""Opens what a run searches: the networks, their held-out batches, and what an interrupted search has measured."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import Listing
from amp.pruning.doubt import warn_of_few
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks, rank
from amp.pruning.measure.store import InputStore, Place
from amp.pruning.memory import calibration_of, refit_bytes
from amp.pruning.places import JOURNAL, journal_header
from amp.pruning.recovery import Recovery
from amp.pruning.refit import calibration_sums, open_compensation, refits_whole
from amp.pruning.search import inputs_every, searches
from amp.run.console import detail, say
from amp.run.files import SCORES
from amp.run.identity import read_header
from amp.run.run import Run
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.kept_moments import MOMENTS, KeptMoments, find_moments, unit_names
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower

INPUTS = ".inputs."  # what the folders of a disk store begin with, one a process


@contextmanager
def open_networks(
    run: Run[PruneConfig],
    tower: Tower,
    scores: Sequence[Tensor],
    listing: Listing,
    thresholds: Sequence[float] = (),
) -> Iterator[NarrowedNetworks]:
    """The networks that a run looks at: the dense tower, and its blocks narrowed from the last on.

    Args:
        tower: dense.
        scores: (H,) a block.
        listing: of the images of the run's settings.
        thresholds: of a sweep, in nats; none: that of the settings.
    Raises:
        UserError: the folder holds the journal of another search, or there are too few held-out images.
    """
    config, own = run.config, run.config.prune
    batches = Batches(listing.images("val"), tower.transform, config.data, config.data.num_val_samples)
    about = world().from_main(lambda: journal_header(run, Path(config.output.dir, SCORES)))
    journal = Journal(run.path(JOURNAL), about, thresholds or [own.entropy_increase], len(batches))
    world().from_main(lambda: _remove_inputs(run.folder))
    store = _open_store(tower, config, own.store, run.path(f"{INPUTS}{world().rank}"))
    saved, home = calibration_sums(run), Path(config.output.dir)
    names = unit_names(len(tower.slots), bool(tower.heads))
    known = world().from_main(lambda: find_moments(home, names, read_header(home / SCORES)))
    wanted = config.score.keep_moments or (home / MOMENTS).exists()
    if known is None and wanted and own.compensation != "none" and not refits_whole(own):
        say(f"note: {home / MOMENTS} is incomplete or from another scoring; the refit reads images instead")
    calibration = partial(calibration_batches, config, tower, listing)
    with networks_over(tower, scores, config, batches, calibration, journal, store, saved, known) as networks:
        yield networks
    batches.say_broken()


@contextmanager
def networks_over(
    tower: Tower,
    scores: Sequence[Tensor],
    config: PruneConfig,
    held_out: Batches | Sequence[Tensor],
    calibration: Callable[[], Batches | Sequence[Tensor]],
    journal: Journal | None = None,
    store: InputStore | None = None,
    saved: Callable[[str], SavedSums] | None = None,
    known: KeptMoments | None = None,
) -> Iterator[NarrowedNetworks]:
    """The same, over images that are at hand.

    Args:
        held_out: batches (B, C, S, S) that entropies are measured on, this process's shares.
        calibration: -> batches that compensation sees; asked for where there is one.
        journal: None: nothing is known yet, and nothing is kept.
        store: None: as `auto` of `prune.store`.
        saved: where the sums of the calibration are kept, by the name of a group of blocks; None: nowhere.
        known: moments that the scoring has kept.
    """
    own, store = config.prune, store or _open_store(tower, config, "auto")
    measured = HeldOutEntropy(tower, held_out, config.score.inverse_temperature, store, inputs_every(own))
    gigabytes = measured.stored_bytes / 1e9
    stored = f"; up to {gigabytes:.1f} GB of stored hidden states (prune.store: {own.store})" if gigabytes > 0.1 else ""
    detail(f"held-out batches: {measured.num_batches}{stored}")
    if searches(own):
        warn_of_few(measured.num_batches, config.data)
    orders = [slot.inputs_of(rank(score_U)) for slot, score_U in zip(tower.units, scores, strict=True)]
    compensation = open_compensation(tower, orders, own, calibration, saved, store.beside(), known)
    try:
        yield NarrowedNetworks(
            tower,
            scores,
            measured,
            journal or Journal(),
            compensation,
            own.compensate_in_search,
            (lambda: Recovery(tower, calibration(), own)) if own.recover_steps else None,
        )
    finally:
        measured.close()


def _open_store(tower: Tower, config: PruneConfig, place: Place, folder: Path | None = None) -> InputStore:
    """What a search keeps; on a GPU it leaves room for the compensation, which comes later."""
    device = world().device
    promised = refit_bytes(tower, *calibration_of(config.prune)) if device.type == "cuda" and place == "auto" else 0
    return InputStore(place, device, folder, promised)


def _remove_inputs(folder: Path) -> None:
    """What killed runs have left, on whatever number of processes they were."""
    for left in folder.glob(f"{INPUTS}*"):
        shutil.rmtree(left, ignore_errors=True)


def calibration_batches(config: PruneConfig, tower: Tower, listing: Listing) -> Batches:
    """Images (B, C, S, S) that compensation sees, this process's share."""
    num_samples = config.prune.num_calibration_samples
    return Batches(listing.images("train"), tower.transform, config.data, num_samples)

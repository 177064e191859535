"""What searches cost and find, side by side on one model and the same images: plain, exact, racing, compensated."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path

from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.errors import UserError
from amp.models.sizes import neuron_params
from amp.pruning.blocks import search_blocks
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks, rank
from amp.pruning.measure.store import InputStore
from amp.pruning.refit import open_compensation
from amp.pruning.search import inputs_every
from amp.pruning.size import meet_size, params_of_widths
from amp.run.console import say
from amp.run.world import world
from amp.settings.prune import PruneConfig, SearchSettings
from amp.towers import Tower
from studies.search_cost_options import SEARCHES, Plan
from studies.search_cost_table import Record, compare, compare_batches, run_table


@dataclass
class SearchBenchmark:
    """A dense tower, its scores and the images of one order, in memory.

    Attributes:
        held_out: batches of the search.
        fresh: batches that no search saw.
        calibration: batches of the training split, for compensation.
    """

    config: PruneConfig
    tower: Tower
    scores: Sequence[Tensor]
    held_out: list[Tensor] = field(default_factory=list)
    fresh: list[Tensor] = field(default_factory=list)
    calibration: list[Tensor] = field(default_factory=list)

    def read(self, seed: int, num_fresh: int, compensated: bool) -> None:
        """The images in the order of a seed; fresh ones are those that follow on the search's.

        Raises:
            UserError: the split has too few images.
        """
        data = self.config.data.model_copy(update={"seed": seed})
        paths, num_held_out = list_images(data, "val"), data.num_val_samples
        if num_fresh and (num_held_out or len(paths)) + num_fresh > len(paths):
            raise UserError(
                "--fresh",
                f"{num_fresh} images besides the data.num_val_samples {num_held_out} of the search; the split "
                f"has {len(paths)}",
            )
        num_images = None if num_held_out is None else num_held_out + num_fresh
        batches = list(Batches(paths, self.tower.transform, data, num_images))
        count = (num_held_out or len(paths)) // data.batch_size
        self.held_out, self.fresh = batches[:count], batches[count:] if num_fresh else []
        if compensated:
            num_samples = self.config.prune.num_calibration_samples
            train = Batches(list_images(data, "train"), self.tower.transform, data, num_samples)
            self.calibration = list(train)

    def search(self, own: SearchSettings) -> Record:
        """One search, from images in memory to widths: `{widths, entropies, block_forwards, seconds, ...}`."""
        store = InputStore(own.store, world().device, Path(self.config.output.dir) / ".inputs")
        started = time.perf_counter()
        entropy = self._entropy(self.held_out, store, inputs_every(own))
        found = search_blocks(self._networks(entropy, own), own, own.entropy_increase)
        seconds = time.perf_counter() - started
        entropy.close()
        ends = {"dense_entropy": found.dense_entropy, "final_entropy": found.final_entropy}
        record = {"widths": found.widths, "params": params_of_widths(self.tower, found.widths), **ends}
        return {**record, "probe_batches": found.probe_batches, **entropy.cost, "seconds": seconds}

    def fresh_entropies(self, own: SearchSettings, widths: Sequence[int]) -> list[float]:
        """Of each fresh batch, in nats, by the network with these widths, compensated where the search was."""
        entropy = self._entropy(self.fresh, None, None)
        networks = self._networks(entropy, own)
        with ExitStack() as narrowed:
            for block in reversed(range(len(widths))):
                narrowed.enter_context(networks.narrowed(block, widths[block]))
            return entropy.measure(0, range(len(self.fresh)))

    def _entropy(self, batches: list[Tensor], store: InputStore | None, every: int | None) -> HeldOutEntropy:
        return HeldOutEntropy(self.tower, batches, self.config.score.inverse_temperature, store, every)

    def _networks(self, entropy: HeldOutEntropy, own: SearchSettings) -> NarrowedNetworks:
        orders = [rank(score_H) for score_H in self.scores]
        compensation = open_compensation(self.tower, orders, own, lambda: self.calibration)
        return NarrowedNetworks(self.tower, self.scores, entropy, Journal(), compensation, own.compensate_in_search)


def run_searches(benchmark: SearchBenchmark, searches: Mapping[str, SearchSettings]) -> dict[str, Record]:
    """The searches, each beside the plain and the exact one; fresh entropies at equal size where there are images.

    Where the plain search is left out, its block forwards are reckoned, and no share of its seconds is known.
    """
    tower, steps = benchmark.tower, benchmark.config.prune.search_steps
    found = {name: benchmark.search(own) for name, own in searches.items()}
    first = "exact" if "exact" in found else next(iter(found))
    exact, passes = found[first], 1 + len(tower.slots) * steps
    reckoned = {"block_forwards": len(tower.slots) * passes * len(benchmark.held_out), "seconds": None}
    grid = [max(1, width // 2**steps) for width in tower.widths]
    for record in found.values():
        record |= compare(record, found.get("plain", reckoned), exact, grid)
    if benchmark.fresh:
        costs = [neuron_params(slot) for slot in tower.slots]
        expected = benchmark.fresh_entropies(searches[first], exact["widths"])
        for name, record in found.items():
            widths = scale_to(record["widths"], exact["widths"], tower.widths, costs)
            record["fresh"] = compare_batches(benchmark.fresh_entropies(searches[name], widths), expected)
    return found


def scale_to(widths: Sequence[int], goal: Sequence[int], dense: Sequence[int], costs: Sequence[int]) -> list[int]:
    """`widths` times the one factor at which they cost what `goal` does, as nearly as whole neurons can.

    Args:
        costs: of one neuron of each block.
    """

    def of_goal(tried: Sequence[float]) -> float:
        return sum(map(mul, tried, costs)) / sum(map(mul, goal, costs))

    def scaled(factor: float) -> list[int]:
        return [min(whole, max(1, round(width * factor))) for width, whole in zip(widths, dense, strict=True)]

    return [round(width) for width in meet_size(scaled, of_goal, 1.0, high=float(max(dense))).widths]


def measure_searches(benchmark: SearchBenchmark, plan: Plan) -> list[Record]:
    """The searches at every threshold and order, each run told on the console as it ends."""
    chosen = {name: SEARCHES[name] for name in plan.searches}
    own, first = benchmark.config.prune, benchmark.config.data.seed
    runs = []
    for seed in range(first, first + plan.num_seeds):
        benchmark.read(seed, plan.num_fresh, any("compensation" in words for words in chosen.values()))
        num_batches = len(benchmark.held_out)
        for threshold in plan.thresholds:
            settings = {
                name: own.model_copy(update={**words, "entropy_increase": threshold}) for name, words in chosen.items()
            }
            found = run_searches(benchmark, settings)
            runs.append({"seed": seed, "threshold": threshold, "batches": num_batches, "searches": found})
            say(f"\nseed {seed}, {num_batches} batches, entropy_increase {threshold:g}\n{run_table(found)}")
            for name, one in found.items():
                say(f"{name}: {one['widths']}, entropy {one['dense_entropy']:.5f} -> {one['final_entropy']:.5f}")
    return runs

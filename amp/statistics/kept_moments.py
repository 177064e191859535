"""The moments of a scoring that are kept, so that a network of any size is refitted without the images.

H hidden neurons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amp.run.files import atomic, room_for
from amp.run.identity import first_difference
from amp.run.sealed import read_tensor_header, read_tensors, write_tensors
from amp.run.world import world
from amp.statistics.moments import MomentCollector, Moments

MOMENTS = "moments"
READ_WEIGHT = 16.0  # of a token that the feature reads, in what refits are made of; each of the others counts once
ADVICE = f"delete the folder {MOMENTS} to refit on images"


class KeptMoments:
    """Of MLPs and of attentions, by `unit_names`, as refits want them (`for_refit`), as far as they are there.

    Attributes:
        num_batches: global batches of images that they are of.

    Args:
        folder: of a file for each; None: they are held in memory, on the CPU.
        header: of the run whose scoring it is.
    """

    def __init__(self, num_batches: int, folder: Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self.num_batches, self._folder = num_batches, folder
        self._header = {**(header or {}), "num_batches": num_batches, "read_weight": READ_WEIGHT}
        self._held: dict[str, dict[str, Tensor]] = {}

    def keep(self, name: str, moments: Moments) -> None:
        """Those of one of them, the same on every process. Raises StoppedError when the disk is full."""
        lower_2X = torch.tril_indices(*moments.covariance_HH.shape, device=moments.covariance_HH.device)
        tensors = {
            "num_tokens": torch.tensor(moments.num_tokens),
            "mean": moments.mean_H.cpu(),
            "covariance": moments.covariance_HH[lower_2X[0], lower_2X[1]].cpu(),
        }
        if self._folder is None:
            self._held[name] = tensors
        else:
            path = _file(self._folder, name)
            world().from_main(lambda: self._write(path, tensors))

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        path.parent.mkdir(exist_ok=True)
        with room_for(path), atomic(path) as partial:
            write_tensors(partial, tensors, self._header)

    def of(self, name: str) -> Moments:
        """Of one that is kept, on the device. Raises UserError where its file is damaged."""
        if self._folder is None:
            tensors = self._held[name]
        else:
            _, tensors = read_tensors(_file(self._folder, name), ADVICE)
        mean_H, lower_X = (tensors[key].to(world().device) for key in ("mean", "covariance"))
        covariance_HH = mean_H.new_zeros(len(mean_H), len(mean_H))
        rows_X, columns_X = torch.tril_indices(*covariance_HH.shape, device=covariance_HH.device)
        covariance_HH[rows_X, columns_X] = lower_X
        covariance_HH[columns_X, rows_X] = lower_X
        return Moments(int(tensors["num_tokens"]), mean_H, covariance_HH)


def for_refit(collector: MomentCollector, index: int) -> Moments:
    """What the refit of one of the collector's blocks is made of: the feature depends most on the tokens that it reads.

    Raises UserError as `MomentCollector.of`.
    """
    return collector.of(index, READ_WEIGHT)


def unit_names(num_blocks: int, heads: bool) -> list[str]:
    """Of each of a tower's `units`.

    Args:
        heads: whether attention heads are among them.
    """
    return [f"{kind}_{block}" for block in range(num_blocks) for kind in (("heads", "block") if heads else ("block",))]


def find_moments(folder: Path, names: Sequence[str], scored: Mapping[str, Any]) -> KeptMoments | None:
    """What a scoring has kept in its folder; None where one is missing, or it was another scoring.

    Args:
        names: of all that are wanted.
        scored: the header of the scores.
    """
    files = [_file(folder / MOMENTS, name) for name in names]
    if not all(path.exists() for path in files):
        return None
    headers = [read_tensor_header(path, ADVICE) for path in files]
    if any(first_difference(own, scored) or own.get("read_weight") != READ_WEIGHT for own in headers):
        return None
    return KeptMoments(headers[0]["num_batches"], folder / MOMENTS, scored)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"

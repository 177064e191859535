"""What pictures of a run share."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from amp.run.files import atomic

matplotlib.use("Agg")


GREY, BLUE = "#c9ced6", "#2f6db3"


def save_figure(figure: Any, path: Path) -> None:
    """A PNG, written beside and renamed."""
    with atomic(path) as partial:
        figure.savefig(partial, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)

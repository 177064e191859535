"""What pictures share. They are drawn without a window, whatever backend a notebook has chosen."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from amp.run.files import atomic

# Blue and orange of Okabe and Ito, which colour-blind people tell apart; in print they differ in brightness.
GREY, BLUE, ORANGE = "#c9ced6", "#0072b2", "#e69f00"


def panels(number: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure of so many panels beside each other, and their axes; its sides in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG, written beside and renamed."""
    with atomic(path) as partial:
        figure.savefig(partial, dpi=130, format="png", metadata={"Software": None})

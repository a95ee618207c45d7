"""Draw a confusion matrix; with many classes, its most confused pairs are listed beside it."""

import warnings
from pathlib import Path
from typing import Any

from tinytl.errors import printable
from tinytl.evaluation.confusion import Confusion, shares_of_rows
from tinytl.system.files import write_whole

MOST_WITH_COUNTS = 20  # classes; with more, the numbers would not fit into the cells
MOST_WITH_NAMES = 120  # classes; with more, the names would not be readable
LISTED = 25  # pairs of confused classes, and classes of low recall, beside the matrix
LONGEST_NAME = 28  # characters
DPI = 120


def draw_confusion(confusion: Confusion, path: Path) -> None:
    """Write a PNG of the matrix: rows are true classes, colours are shares of a row's images."""
    import matplotlib  # slow to import

    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        figure = _figure(confusion)
        write_whole(
            path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")
        )


def _figure(confusion: Confusion) -> Any:
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may need a screen

    classes = len(confusion.names)
    side, list_inches = _side_inches(classes), 0.0 if classes <= MOST_WITH_COUNTS else 5.6
    label_inches = 2.3 if classes <= MOST_WITH_NAMES else 0.8
    width = label_inches + max(side, 4.5) + 0.3 + list_inches
    height = 0.9 + side + label_inches
    figure = Figure(figsize=(width, height))
    place = (label_inches / width, label_inches / height, side / width, side / height)
    axes = figure.add_axes(place)
    _draw_matrix(axes, confusion)
    figure.text(0.2 / width, 1 - 0.4 / height, _headline(confusion), fontsize=11)
    if list_inches:
        left, top = label_inches + side + 0.4, label_inches + side
        figure.text(left / width, top / height, _worst(confusion), fontsize=10, va="top")
    return figure


def _side_inches(classes: int) -> float:
    """The side of the matrix: small ones get large cells, large ones at least one pixel a class."""
    if classes <= MOST_WITH_COUNTS:
        return max(2.0, 0.45 * classes)
    return max(9.0, 0.13 * classes) if classes <= MOST_WITH_NAMES else max(10.0, 2 * classes / DPI)


def _draw_matrix(axes: Any, confusion: Confusion) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    classes = len(confusion.names)
    colours = colormaps["Blues"].with_extremes(bad="0.88")  # grey: no images of this class
    rare_visible = PowerNorm(0.5, 0, 1)
    axes.imshow(shares_of_rows(confusion).numpy(), cmap=colours, norm=rare_visible, interpolation="nearest")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= MOST_WITH_NAMES:
        names = [_shortened(name) for name in confusion.names]
        size = 9 if classes <= MOST_WITH_COUNTS else 6
        axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    if classes <= MOST_WITH_COUNTS:
        _write_counts(axes, confusion)


def _write_counts(axes: Any, confusion: Confusion) -> None:
    counts, dark = confusion.counts.tolist(), shares_of_rows(confusion).gt(0.4).tolist()
    for row, numbers in enumerate(counts):
        for column, number in enumerate(numbers):
            if number:
                colour = "white" if dark[row][column] else "black"
                axes.text(column, row, f"{number}", ha="center", va="center", fontsize=8, color=colour)


def _headline(confusion: Confusion) -> str:
    return (
        f"{sum(confusion.images):,} images, accuracy {confusion.accuracy:.1%}, "
        f"balanced {confusion.balanced_accuracy:.1%}"
    )


def _worst(confusion: Confusion) -> str:
    """Return lines on the most confused pairs of classes, and on the classes of lowest recall."""
    pairs = [
        f"{m.images:,} ({m.share:.0%})  {_shortened(m.true)} as {_shortened(m.predicted)}"
        for m in confusion.most_confused(LISTED)
    ]
    lowest = [
        f"{recall:.0%} of {images:,}  {_shortened(name)}"
        for name, images, recall in confusion.lowest_recall(LISTED)
    ]
    confused = ["most confused: images (share of the true class)", *(pairs or ["none"])]
    return "\n".join([*confused, "", "lowest recall: share of images", *lowest])


def _shortened(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"

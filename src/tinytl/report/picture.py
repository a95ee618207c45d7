"""A picture of accuracy against memory: each method on stock PyTorch and on the lean engine."""

from pathlib import Path
from typing import Any

import pandas

from tinytl.errors import UserError
from tinytl.report.groups import grouped
from tinytl.report.packed import NOT_RESULTS
from tinytl.report.runs import read
from tinytl.system.files import write_whole

COLOURS = {
    "last": "#7b8794", "bias": "#2f7ed8", "norm_last": "#8a5fbf", "tinytl_l": "#3fa7a0", "tinytl": "#1d8a4e",
    "full": "#d9622b",
}  # fmt: skip
TICKS_MB = [2**power for power in range(14)]


def draw(outputs: Path, path: Path, where: list[str]) -> str:
    """Draw the runs in `outputs` for which every `KEY=VALUE` of `where` holds; return what is shown.

    A data set has a panel, and a method a point: the setting with most seeds, and of those the most accurate
    one. Raises UserError where no run that was trained on stock PyTorch remains, or on an unknown key.
    """
    groups: Any = grouped(read(outputs)[0])[1]
    for setting in where:
        key, _, value = setting.partition("=")
        if key not in groups:
            raise UserError(f"where={setting}: no run has a setting {key}, or all have the same")
        groups = groups[groups[key] == value]
    if groups.empty or (points := _points(groups)).empty:
        raise UserError(f"outputs={outputs}: no tested runs on stock PyTorch to draw")
    try:
        write_whole(path, lambda temporary: _figure(points).savefig(temporary, dpi=150, format="png"))
    except NOT_RESULTS as error:
        raise UserError(f"picture={path}: cannot be written ({error})") from error
    return f"{len(points)} settings of {points.data.nunique()} data sets in {path}"


def _points(groups: pandas.DataFrame) -> Any:
    stock: Any = groups[groups.engine == "stock"]
    known = stock.dropna(subset=["accuracy", "lean_mb", "measured_mb"])
    ordered = known.sort_values(["seeds", "accuracy"], ascending=False)
    return ordered.drop_duplicates(["data", "method"]).sort_values(["data", "lean_mb"])


def _figure(points: Any) -> Any:
    import matplotlib.pyplot as plt  # slow to import

    names = list(points.data.unique())
    figure, panels = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), layout="constrained")
    for name, axes in zip(names, [panels] if len(names) == 1 else panels, strict=True):
        _panel(axes, points[points.data == name])
        axes.set_title(name, fontsize=11)
    figure.supxlabel("memory of a training step, MB: the lean engine (●) and stock PyTorch (○)", fontsize=10)
    figure.supylabel("test accuracy, %", fontsize=10)
    plt.close(figure)
    return figure


def _panel(axes: Any, points: pandas.DataFrame) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    for point in points.to_dict("records"):
        colour, y = COLOURS.get(point["method"], "black"), point["accuracy"]
        axes.plot([point["lean_mb"], point["measured_mb"]], [y, y], color=colour, linewidth=1, alpha=0.35)
        axes.errorbar(point["lean_mb"], y, yerr=point["std"], fmt="o", color=colour, capsize=3)
        axes.plot(point["measured_mb"], y, "o", color=colour, markerfacecolor="white")
    low, high = points.lean_mb.min() / 1.5, points.measured_mb.max() * 1.5
    axes.set(xscale="log", xlim=(low, high))
    axes.set_xticks([tick for tick in TICKS_MB if low < tick < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    _labels(axes, points)


def _labels(axes: Any, points: pandas.DataFrame) -> None:
    """The methods' names between their two points, left and right in turn, so that neighbours do not meet."""
    for number, point in enumerate(points.sort_values("accuracy").to_dict("records")):
        along = 0.7 if number % 2 else 0.35
        between = point["lean_mb"] ** (1 - along) * point["measured_mb"] ** along
        axes.text(
            between, point["accuracy"], point["method"],
            color=COLOURS.get(point["method"], "black"), fontsize=8.5, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip

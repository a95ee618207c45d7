"""Plot what a benchmark measured: step time against memory."""

import math
from pathlib import Path
from typing import Any

TICKS_MB = [size * 10**power for power in range(5) for size in (1, 2, 3, 5)]
NAMED = ("model", "norm", "method", "batch_size")  # settings in which the lines of a plot may differ
# Where a label may lie beside its point, in points (1/72 inch) to the right and up, the best places first.
AROUND = [
    (x, y) for far in (9, 16, 26, 38, 52) for x, y in ((0, far), (0, -far), (far + 9, 4), (-far - 9, 4))
]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot step time against measured memory: a point per plan, a line through the lean plans none beats.

    In the legend stands what differs between the lines, and in the title what does not.
    """
    import matplotlib.pyplot as plt  # slow to import
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    timed = [row for row in rows if row["step_time_ratio"] is not None]
    differ = [key for key in NAMED if len({row[key] for row in timed}) > 1]
    for line in dict.fromkeys(tuple(row[key] for key in differ) for row in timed):
        points = [row for row in timed if tuple(row[key] for key in differ) == line]
        front = unbeaten([row for row in points if not row["plan"].startswith("stock")] or points)
        (drawn,) = axes.plot(*zip(*map(_place, front), strict=True), label=", ".join(map(str, line)))
        axes.plot(*zip(*map(_place, points), strict=True), "o", color=drawn.get_color(), markersize=5)
    axes.set(xscale="log", xlabel="peak of live tensors, MB", ylabel="step time, x stock PyTorch")
    axes.set_title(", ".join(f"{key} {timed[0][key]}" for key in NAMED if key not in differ), fontsize=10)
    axes.set_ylim(0, 1.15 * max(row["step_time_ratio"] for row in timed))
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS_MB if low < tick < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    if differ:
        axes.legend(loc="lower right")
    _label(figure, axes, timed)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def unbeaten(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in both memory and time, from the least memory on."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=_place):
        if not front or row["step_time_ratio"] < front[-1]["step_time_ratio"]:
            front.append(row)
    return front


def _label(figure: Any, axes: Any, rows: list[dict[str, Any]]) -> None:
    """Name each point by its plan, where the name lies on no other name, point or legend."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout decides where the points are
    figure.set_layout_engine("none")
    dots = axes.transData.transform([_place(row) for row in rows])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    if axes.get_legend() is not None:
        taken.append(axes.get_legend().get_window_extent())
    for row, dot in zip(rows, taken[: len(rows)], strict=True):
        name = axes.annotate(
            row["plan"], _place(row), xytext=(0, 0), textcoords="offset points", fontsize=7.5, ha="center",
            va="center", path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        if not any(_takes_place(name, place, taken, dot, axes.bbox) for place in AROUND):
            name.remove()  # the legend's line and the table have it


def _takes_place(name: Any, place: tuple[float, float], taken: list[Any], dot: Any, inside: Any) -> bool:
    """Move a name to a place; if nothing lies there, add it to `taken` and return True."""
    right, up = place
    half_width = name.get_window_extent().width / 2 * 72 / name.figure.dpi  # in points
    if right != 0:  # the name is centred: its nearer end is to lie there
        right += math.copysign(half_width, right)
    name.set_position((right, up))
    box = name.get_window_extent().padded(3)
    meets = any(box.overlaps(other) for other in taken if other is not dot)
    if meets or box.x1 > inside.x1 or box.x0 < inside.x0:
        return False
    taken.append(box)
    return True


def _place(row: dict[str, Any]) -> tuple[float, float]:
    """The coordinates of a plan's point."""
    return row["measured_mb"], row["step_time_ratio"]

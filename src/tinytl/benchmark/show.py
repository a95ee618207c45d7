"""Show what a benchmark measured, as a table and as a plot."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinytl.assembly import TrainingStep

TICKS_MB = [size * 10**power for power in range(5) for size in (1, 2, 3, 5)]


def show(cell: TrainingStep, rows: list[dict[str, Any]], console: Console) -> None:
    """Print a cell's table, and what takes the memory at each plan's peak."""
    spec = cell.spec
    table = Table(
        title=f"{spec.model}, {spec.norm}, {cell.method}, batch {cell.batch_size}, {cell.resolution} px",
        caption="1 MB = 1e6 bytes; time of a step, stock = 1",
    )
    columns = {
        "measured": "measured_mb",
        "at least": "lower_bound_mb",
        "paper": "paper_mb",
        "process": "rss_mb",
    }
    if any(row["cuda_mb"] for row in rows):
        columns["CUDA"] = "cuda_mb"
    for column in ("plan", *columns, "time"):
        table.add_column(column, justify="left" if column == "plan" else "right")
    for row in rows:
        step_time = "-" if row["step_time_ratio"] is None else f"{row['step_time_ratio']:.2f} x"
        sizes = [f"{row[key]:.1f}" for key in columns.values()]
        table.add_row(row["plan"], *sizes, step_time)
    console.print(table)
    for row in rows:
        split = ", ".join(f"{kind} {size:.1f}" for kind, size in row["split_mb"].items() if size >= 0.05)
        layers = ", ".join(f"{layer} {size:.1f}" for layer, size in row["peak_by_layer_mb"].items())
        console.print(f"at the peak of [b]{row['plan']}[/b]: {split}; by layer: {layers}", highlight=False)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot step time against measured memory: a point per plan, a line through the plans that none beats."""
    import matplotlib.pyplot as plt  # slow to import
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    timed = [row for row in rows if row["step_time_ratio"] is not None]
    for key in dict.fromkeys((row["model"], row["norm"], row["method"], row["batch_size"]) for row in timed):
        points = [r for r in timed if (r["model"], r["norm"], r["method"], r["batch_size"]) == key]
        front = unbeaten(points)
        (line,) = axes.plot(*zip(*map(_place, front), strict=True), label="{}, {}, {}, batch {}".format(*key))
        axes.plot(*zip(*map(_place, points), strict=True), "o", color=line.get_color(), markersize=5)
        for row in [*front, *(row for row in points if row["plan"] == "stock")]:
            axes.annotate(
                row["plan"], _place(row), xytext=(0, 7), textcoords="offset points", fontsize=8, ha="center"
            )
    axes.set(xscale="log", xlabel="peak of live tensors, MB", ylabel="step time, x stock PyTorch")
    axes.set_ylim(0, 1.1 * max(row["step_time_ratio"] for row in timed))
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS_MB if low < tick < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def unbeaten(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in both memory and time, from the least memory on."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=_place):
        if not front or row["step_time_ratio"] < front[-1]["step_time_ratio"]:
            front.append(row)
    return front


def _place(row: dict[str, Any]) -> tuple[float, float]:
    return row["measured_mb"], row["step_time_ratio"]

"""Show what a benchmark measured, as a table and as a plot."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinytl.assembly import TrainingStep


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
    """Plot step time against measured memory, with a line per method and a point per plan."""
    import matplotlib.pyplot as plt  # slow to import

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    timed = [row for row in rows if row["step_time_ratio"] is not None]
    for key in dict.fromkeys((row["model"], row["norm"], row["method"], row["batch_size"]) for row in timed):
        points = [r for r in timed if (r["model"], r["norm"], r["method"], r["batch_size"]) == key]
        points.sort(key=lambda row: row["measured_mb"])
        x, y = [r["measured_mb"] for r in points], [r["step_time_ratio"] for r in points]
        axes.plot(x, y, "o-", label="{}, {}, {}, batch {}".format(*key))
        for row in points:
            place = (row["measured_mb"], row["step_time_ratio"])
            axes.annotate(
                row["plan"], place, xytext=(2, 4), textcoords="offset points", fontsize=6, rotation=40
            )
    axes.set(
        xscale="log", xlabel="peak of live tensors, MB", ylabel="step time, x stock PyTorch", ylim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)

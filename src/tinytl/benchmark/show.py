"""Show what a benchmark measured, as a table."""

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

"""Memory and step time of a training step: the lean engine beside stock PyTorch.

python src/bench.py quick=true
python src/bench.py method=tinytl,bias,last,full batch_size=1,8 json=bench.json plot=bench.png

Lists: model, norm, method, batch_size, resolution, plans (names of PLANS, or `curve`). Every plan is
measured in a fresh process: peak live tensor bytes by the meter, and the process's peak resident memory
above what it had after its imports. Step times are measured interleaved in one process, and given as
the median of ratios to stock PyTorch. Images are noise, made a micro-batch at a time.
"""

import logging
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import timm
from rich.console import Console
from rich.table import Table

from bounds import NUMBERS, Range, require
from command_line import key_values, one_line_errors
from suggestions import did_you_mean
from tinytl.backbones.norms import NORM_NAMES
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory import measure
from tinytl.memory.measure import StepMemory
from tinytl.memory.paper_count import count_as_paper
from tinytl.memory.training_step import Plan, TrainingStep
from tinytl.methods import METHODS
from tinytl.results import write_json

SMALL = EnginePlan(micro_batch=2, slice_kb=800.0, keep_projection=False)
SMALLEST = replace(SMALL, micro_batch=1, slice_kb=400.0)
PLANS: dict[str, Plan] = {
    "stock": ("stock", EnginePlan()),
    "stock micro-batch 1": ("stock", EnginePlan(micro_batch=1)),
    "stock checkpoints": ("checkpoints", EnginePlan()),
    "fast": ("lean", EnginePlan(recompute_above_px=28, slice_kb=2000.0)),
    "lean": ("lean", EnginePlan()),
    "small": ("lean", SMALL),
    "smallest": ("lean", SMALLEST),
    "smallest 8 bits": ("lean", replace(SMALLEST, optimizer_bits=8)),
}
# From the least memory to the least time: images at a time; p: projections kept; px: the largest maps
# that are kept, a side.
CURVE: dict[str, Plan] = {
    **{
        f"{m}{' p' if keep else ''}": (
            "lean",
            EnginePlan(micro_batch=m, slice_kb=400.0 * m, keep_projection=keep),
        )
        for m, keep in product((1, 2, 4, 8), (False, True))
    },
    **{
        f"8 p {px or 'all'} px": ("lean", EnginePlan(slice_kb=2000.0, recompute_above_px=px))
        for px in (7, 14, 28, 56, None)
    },
}
LARGEST_STOCK_BATCH = 32  # above, stock PyTorch is neither measured nor timed: 70 MB an image


@dataclass
class Options:
    """The command line."""

    model: list[str] = field(default_factory=lambda: ["proxylessnas_mobile"])
    norm: list[str] = field(default_factory=lambda: ["gn"])
    method: list[str] = field(default_factory=lambda: ["tinytl", "bias", "last", "full"])
    batch_size: list[int] = field(default_factory=lambda: [8])
    resolution: list[int] = field(default_factory=lambda: [224])
    plans: list[str] = field(default_factory=lambda: list(PLANS))
    slice_kb: float | None = None  # in place of the lean plans' own; on a GPU 4000 is much faster
    num_classes: int = 102
    rounds: int = 7  # of interleaved steps to time; 0: do not time
    json: str | None = None
    plot: str | None = None
    quick: bool = False  # tinytl alone, three plans, few rounds: two minutes


def main() -> None:
    """Measure all cells, print a table for each, write JSON and a plot if asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with one_line_errors():
        options = parse(sys.argv[1:])
        console, rows = Console(), []
        for cell in cells(options):
            plans = plans_for(cell, options.plans, options.slice_kb)
            measured = list(rows_of(cell, plans, options.rounds, console))
            show(cell, measured, console)
            rows += measured
        if options.json:
            write_json(Path(options.json), {"rows": rows})
        if options.plot:
            plot(rows, Path(options.plot))


def parse(arguments: list[str]) -> Options:
    """The command line as options. Raises UserError."""
    options = key_values(arguments, Options)
    _check(options)
    if options.quick:
        options.method, options.rounds = options.method[:1], 3
        options.plans = [name for name in options.plans if name in ("stock", "lean", "smallest")]
    return options


def _check(options: Options) -> None:
    """Raise UserError naming the first option that cannot be."""
    known = {
        "model": timm.list_models(),
        "norm": NORM_NAMES,
        "method": tuple(METHODS),
        "plans": (*PLANS, "curve"),
    }
    for key, names in known.items():
        for name in getattr(options, key):
            if name not in names:
                hint = did_you_mean(name, names) or (f"; of {', '.join(names)}" if len(names) < 20 else "")
                raise UserError(f"{key}={name}: unknown{hint}")
    for key in ("batch_size", "resolution"):
        for value in getattr(options, key):
            require(key, value, NUMBERS[key])
    require("num_classes", options.num_classes, NUMBERS["data.num_classes"])
    require("rounds", options.rounds, Range(0, 1000, "steps to time"))
    if options.slice_kb is not None:
        require("slice_kb", options.slice_kb, NUMBERS["engine.slice_kb"])


def cells(options: Options) -> Iterator[TrainingStep]:
    """Every combination of the lists."""
    lists = (options.model, options.norm, options.method, options.batch_size, options.resolution)
    for combination in product(*lists):
        yield TrainingStep.of(*combination, num_classes=options.num_classes)  # type: ignore[arg-type]


def plans_for(cell: TrainingStep, names: list[str], slice_kb: float | None = None) -> dict[str, Plan]:
    """The plans that the cell allows."""
    chosen = {}
    for name in names:
        chosen |= {"stock": PLANS["stock"], **CURVE} if name == "curve" else {name: PLANS[name]}
    allowed = {}
    for name, (engine, plan) in chosen.items():
        whole_only = cell.spec.norm == "bn" and plan.micro_batch is not None
        too_large = engine != "lean" and cell.batch_size > LARGEST_STOCK_BATCH and plan.micro_batch is None
        if not whole_only and not too_large:
            # one micro-batch a step: the optimizer may step in the backward pass
            in_backward = cell.batch_size == 1 and plan.optimizer_bits == 8
            size = slice_kb or plan.slice_kb
            allowed[name] = (engine, replace(plan, step_in_backward=in_backward, slice_kb=size))
    return allowed


def rows_of(
    cell: TrainingStep, plans: dict[str, Plan], rounds: int, console: Console
) -> Iterator[dict[str, Any]]:
    """One row a plan."""
    paper = count_as_paper(cell.spec, cell.method, cell.resolution)
    seconds = {}
    if rounds and cell.batch_size <= LARGEST_STOCK_BATCH:
        with console.status(f"{cell.method}, batch {cell.batch_size}: timing {len(plans)} plans"):
            seconds = measure.in_fresh_process(measure.time_steps, cell, plans, rounds)
    for number, (name, (engine, plan)) in enumerate(plans.items(), start=1):
        with console.status(f"{cell.method}, batch {cell.batch_size}: plan {number} of {len(plans)}, {name}"):
            memory = measure.in_fresh_process(measure.measure_memory, cell, engine, plan)
        yield {
            "model": cell.spec.model,
            "method": cell.method,
            "norm": cell.spec.norm,
            "engine": engine,
            "plan": name,
            "batch_size": cell.batch_size,
            "resolution": cell.resolution,
            **figures(memory),
            "paper_mb": paper.total_bytes(cell.batch_size) / 1e6,
            "step_time_ratio": ratio(seconds, name),
            "step_seconds": statistics.median(seconds[name]) if name in seconds else None,
        }


def figures(memory: StepMemory) -> dict[str, Any]:
    """In MB, what took them by kind, and the layers that hold most at the peak."""
    report = memory.report
    return {
        "measured_mb": report.peak_mb,
        "rss_mb": memory.process_bytes / 1e6,
        "cuda_mb": memory.cuda_bytes and memory.cuda_bytes / 1e6,
        "lower_bound_mb": memory.lower_bound_bytes / 1e6,
        "kept_mb": report.kept_bytes / 1e6,
        "split_mb": {kind: size / 1e6 for kind, size in report.peak_split_bytes.items()},
        "peak_by_layer_mb": {k: v / 1e6 for k, v in list(report.peak_by_layer_bytes.items())[:5]},
    }


def ratio(seconds: dict[str, list[float]], name: str) -> float | None:
    """Median over the rounds of a plan's time to stock's in the same round."""
    if name not in seconds or "stock" not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[name], seconds["stock"], strict=True))


def show(cell: TrainingStep, rows: list[dict[str, Any]], console: Console) -> None:
    """Print a cell's table and what takes the memory at the peak."""
    spec = cell.spec
    table = Table(
        title=f"{spec.model}, {spec.norm}, {cell.method}, batch {cell.batch_size}, {cell.resolution} px",
        caption="MB of 1e6 bytes; time of a step, stock = 1",
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
    """Step time against measured memory, a line per method, a point per plan."""
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


if __name__ == "__main__":
    main()

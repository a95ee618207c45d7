"""Measure training steps: memory of every plan in a fresh process, step times interleaved in one."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from tinytl.assembly import TrainingStep
from tinytl.benchmark.plans import LARGEST_STOCK_BATCH
from tinytl.errors import UserError
from tinytl.memory import measure
from tinytl.memory.measure import StepMemory
from tinytl.paper.count import count_as_paper


def read_rows(path: str | None, methods: list[str], plans: list[str]) -> list[dict[str, Any]]:
    """The rows of an earlier benchmark of these methods and plans; none without a file.

    Raises UserError where the file holds none of them.
    """
    if path is None:
        return []
    try:
        rows = json.loads(Path(path).read_bytes())["rows"]
        chosen = [
            row for row in rows
            if row["method"] in methods and (row["plan"] in plans or plans == ["curve"])
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"rows={path}: not the rows of a benchmark ({error})") from error
    if not chosen:
        raise UserError(f"rows={path}: holds no row of these methods and plans")
    return chosen


def rows_of(
    cell: TrainingStep, steps: dict[str, TrainingStep], rounds: int, console: Console
) -> Iterator[dict[str, Any]]:
    """Yield one row per plan; the steps are timed `rounds` times, interleaved."""
    paper = count_as_paper(cell.spec, cell.method, cell.resolution)
    seconds = {}
    if rounds and cell.batch_size <= LARGEST_STOCK_BATCH:
        with console.status(f"{cell.method}, batch {cell.batch_size}: timing {len(steps)} plans"):
            seconds = measure.in_fresh_process(measure.time_steps, steps, rounds)
    for number, (name, step) in enumerate(steps.items(), start=1):
        with console.status(f"{cell.method}, batch {cell.batch_size}: plan {number} of {len(steps)}, {name}"):
            memory = measure.in_fresh_process(measure.measure_memory, step)
        yield {
            "model": cell.spec.model,
            "method": cell.method,
            "norm": cell.spec.norm,
            "engine": step.engine,
            "plan": name,
            "batch_size": cell.batch_size,
            "resolution": cell.resolution,
            **figures(memory),
            "paper_mb": paper.total_bytes(cell.batch_size) / 1e6,
            "step_time_ratio": ratio(seconds, name),
            "step_seconds": statistics.median(seconds[name]) if name in seconds else None,
        }


def figures(memory: StepMemory) -> dict[str, Any]:
    """Return the figures in MB, also by kind of tensor, and by the five layers that hold most at the peak."""
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
    """Median, over the rounds, of a plan's time divided by stock PyTorch's in the same round."""
    if name not in seconds or "stock" not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[name], seconds["stock"], strict=True))

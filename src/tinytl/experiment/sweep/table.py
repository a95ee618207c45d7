"""Print what a sweep is about to do (`dry_run=true`) or has done, as a table with a row per job."""

import json
import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from tinytl.experiment.sweep.progress import SweepProgress, duration

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
Row = dict[str, Any]


def begin(cfg: Any, jobs: int) -> SweepProgress | None:
    """Print how many jobs there are; return None for a dry run, which writes nothing to the output folder."""
    print(f"{cfg.sweep or 'sweep'}: {jobs} jobs into {cfg.output_dir}", file=sys.stderr)
    return None if cfg.dry_run else SweepProgress.begin(cfg, jobs)


def show(rows: list[Row]) -> bool:
    """Print the table; return whether no job failed. A dry run also prints its rows as JSON, on stdout."""
    planned = "predicted_mb" in rows[0]
    varying = _varying(rows)
    table = Table(*varying, *(PLANNED if planned else RAN), row_styles=["", "dim"])
    for row in rows:
        figures = _planned(row) if planned else _ran(row)
        table.add_row(*(row["settings"].get(key, "") for key in varying), *figures)
    console.print(table)
    failed = [row for row in rows if row["status"] not in ("finished", "planned")]
    print(_planned_in_all(rows) if planned else _ran_in_all(rows, failed), file=sys.stderr)
    if planned:
        print(json.dumps([{k: v for k, v in row.items() if k != "settings"} for row in rows]), flush=True)
    return not failed


PLANNED = ("job", "the paper's count, MB", "predicted, MB", "time")
RAN = ("status", "top-1, %", "measured, MB", "time")


def _varying(rows: list[Row]) -> list[str]:
    """Return the settings in which the jobs differ."""
    keys = dict.fromkeys(key for row in rows for key in row["settings"])
    return [key for key in keys if len({row["settings"].get(key) for row in rows}) > 1]


def _planned(row: Row) -> list[str]:
    seconds = row["predicted_seconds"]
    return [
        row["reason"] or row["status"], _figure(row["paper_mb"]), _figure(row["predicted_mb"]),
        duration(seconds) if seconds is not None else "",
    ]  # fmt: skip


def _ran(row: Row) -> list[str]:
    metrics = row["metrics"]
    accuracy = metrics.get("test/top1", metrics.get("test/mean_accuracy"))
    part = row["metrics"].get("test/part", 1)
    return [
        row["reason"] or row["status"] + (" before" if row["skipped"] else ""),
        _figure(accuracy and 100 * accuracy) + (f" of {100 * part:.0f} % of the images" if part < 1 else ""),
        _figure(row["memory"].get("measured_mb")),
        duration(row["seconds"]),
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _planned_in_all(rows: list[Row]) -> str:
    open_jobs = [row for row in rows if row["status"] == "planned"]
    known = [row["predicted_seconds"] for row in open_jobs if row["predicted_seconds"] is not None]
    time = f"; {duration(sum(known))} for the {len(known)} like earlier runs" if known else ""
    return f"{len(rows)} jobs, {len(open_jobs)} to run{time}"


def _ran_in_all(rows: list[Row], failed: list[Row]) -> str:
    counts = Counter(row["status"].replace("_", " ") for row in rows)
    skipped = sum(row["skipped"] for row in rows)
    text = f"{len(rows)} jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    again = any(row["skipped"] for row in failed)
    return (
        text + (f"; {skipped} of them before" if skipped else "")
        + ("; retry_failed=true runs again what failed" if again else "")
    )  # fmt: skip

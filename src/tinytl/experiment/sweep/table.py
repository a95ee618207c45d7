"""Print what a sweep is about to do (`dry_run=true`) or has done, as a table with a row per job."""

import os
import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from tinytl.experiment.sweep.figures import ACCURACIES, Row, accuracy, by_memory, memory, on_the_front
from tinytl.experiment.sweep.progress import VARYING, SweepProgress, varying
from tinytl.experiment.terminal.console import for_programs
from tinytl.records.durations import duration

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
PLANNED = ("job", "by the paper's count, MB", "predicted, MB", "time")


def begin(cfg: Any, jobs: list[list[str]]) -> SweepProgress | None:
    """Print how many jobs there are; return None for a dry run, which writes nothing to the output folder.

    A variable of the environment tells each job in which settings the jobs differ: these name it.
    """
    settings = [dict(setting.lstrip("+").split("=", 1) for setting in job) for job in jobs]
    os.environ[VARYING] = " ".join(varying(settings))
    print(f"{cfg.sweep or 'sweep'}: {len(jobs)} jobs into {cfg.output_dir}", file=sys.stderr)
    return None if cfg.dry_run else SweepProgress.begin(cfg, len(jobs))


def show(rows: list[Row], always_json: bool) -> bool:
    """Print the table; return whether no job failed. A dry run also prints its rows as JSON for programs."""
    failed = [row for row in rows if row["status"] not in ("finished", "planned")]
    if "predicted_mb" in rows[0]:
        _print(rows, PLANNED, [_planned(row) for row in rows])
        print(_planned_in_all(rows), file=sys.stderr)
        for_programs([{k: v for k, v in row.items() if k != "settings"} for row in rows], always_json)
    else:
        _show_results(by_memory(rows))
        print(_ran_in_all(rows, failed), file=sys.stderr)
    return not failed


def _print(rows: list[Row], columns: tuple[str, ...], figures: list[list[str]]) -> None:
    """Print a row for each job: the settings in which the jobs differ, and figures."""
    keys = varying([row["settings"] for row in rows])
    table = Table(*keys, *columns, row_styles=["", "dim"])
    for number in range(len(keys) + 1, len(keys) + len(columns)):
        table.columns[number].justify = "right"
    for row, texts in zip(rows, figures, strict=True):
        table.add_row(*(row["settings"].get(key, "") for key in keys), *texts)
    console.print(table)


def _show_results(rows: list[Row]) -> None:
    """Print finished jobs by memory; those on the front of accuracy against memory are marked."""
    metrics = {name for row in rows for name in row["metrics"]}
    kind = next((words for name, words in ACCURACIES.items() if name in metrics), "accuracy")
    front = on_the_front(rows)
    columns = ("status", f"{kind}, %", "measured, MB", "time", "front")
    marks = ["*" if marked else "" for marked in front]
    _print(rows, columns, [[*_ran(row), mark] for row, mark in zip(rows, marks, strict=True)])
    if any(front):
        print("* on the front: no other job is as accurate in less memory", file=sys.stderr)


def _planned(row: Row) -> list[str]:
    """Status, memory and time of a job of a dry run."""
    status = row["reason"] or row["status"]
    return [status, _figure(row["paper_mb"]), _figure(row["predicted_mb"]), _planned_time(row)]


def _planned_time(row: Row) -> str:
    """The predicted time of a job, or of a step where the number of steps is not known."""
    seconds = row["predicted_seconds"]
    if seconds is not None:
        return duration(seconds)
    step = row.get("step_seconds")
    return "" if step is None else f"{duration(step)} a step"


def _ran(row: Row) -> list[str]:
    """Status, accuracy, memory and time of a job."""
    value, part = accuracy(row), row["metrics"].get("test/part", 1)
    percent = None if value is None else 100 * value
    return [
        row["reason"] or row["status"] + (" before" if row["skipped"] else ""),
        _figure(percent) + (f" of {100 * part:.0f} % of the images" if part < 1 else ""),
        _figure(memory(row)),
        duration(row["seconds"]),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _planned_in_all(rows: list[Row]) -> str:
    open_jobs = [row for row in rows if row["status"] == "planned"]
    known = [row["predicted_seconds"] for row in open_jobs if row["predicted_seconds"] is not None]
    time = f"; {duration(sum(known))} for {len(known)} of them, one after the other" if known else ""
    return f"{len(rows)} jobs, {len(open_jobs)} to run{time}"


def _ran_in_all(rows: list[Row], failed: list[Row]) -> str:
    counts = Counter(row["status"].replace("_", " ") for row in rows)
    skipped = sum(row["skipped"] for row in rows)
    text = f"{len(rows)} jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    again = any(row["skipped"] for row in failed)
    if skipped:
        text += f"; {skipped} of them before"
    if again:
        text += "; retry_failed=true runs again what failed"
    return text

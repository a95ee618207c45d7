"""The finished runs of an output folder as one table, and those that did not finish as another."""

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pandas

from tinytl.paper.recipe import departures, get, limited
from tinytl.report.lean_memory import lean_mb
from tinytl.report.packed import NOT_RESULTS, Run, leave_out, runs_of

NAMELESS = ("folder", "table", "unlabelled")  # kinds of data, which say nothing of what the images are


def read(outputs: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """(finished runs with COLUMNS, the others with status and reason), a row per run, sorted by name.

    Runs are read from `outputs/*/results.json`, from packed files `outputs/*.jsonl`, or from `outputs`
    itself where it is a packed file. What holds no run's results is named in the log and left out.
    `record` is the content of results.json, `results` its path (None: the run is packed).
    """
    finished, others = [], []
    for run in runs_of(outputs):
        try:
            if run.record["status"] == "finished":
                finished.append(_row(run))
            else:
                reason = run.record.get("reason")
                others.append({"name": run.name, "status": run.record["status"], "reason": reason})
        except NOT_RESULTS as error:
            leave_out(run.place, error)
    _told_apart(finished)
    columns = pandas.Index(["name", *COLUMNS, "record", "results"])
    table = pandas.DataFrame(finished, columns=columns).astype(dict.fromkeys(FIGURES, float))
    return (
        table.assign(lean_mb=pandas.array(lean_mb([row["record"] for row in finished]), dtype=float)),
        pandas.DataFrame(others, columns=pandas.Index(["name", "status", "reason"])),
    )


def _row(run: Run) -> dict[str, Any]:
    record = run.record
    row = {
        column: source(record) if callable(source) else get(record, source)
        for column, source in COLUMNS.items()
    }
    figures = {column: nan if row[column] is None else float(row[column]) for column in FIGURES}
    return {"name": run.name, **row, **figures, "record": record, "results": run.results}


def _accuracy(record: dict[str, Any], part: str = "test") -> float | None:
    """The accuracy in %: top-1, or the mean over the labels of multi-label data; None where there is none."""
    metrics = record["metrics"]
    accuracy = metrics.get(f"{part}/top1", metrics.get(f"{part}/mean_accuracy"))
    return None if accuracy is None else 100 * accuracy


def _test_accuracy(record: dict[str, Any]) -> float | None:
    """The test accuracy; None if there is none, or if a part of the test set was left out."""
    return None if limited(record["config"], "trainer.limit_test_batches") else _accuracy(record)


def _data(record: dict[str, Any]) -> str:
    """The name of the data; that of its folder or table where `data.name` was left at its default."""
    place = _place(record)
    if place is None:
        return get(record, "config.data.name")
    return place.stem if place.suffix == ".csv" else place.name


def _place(record: dict[str, Any]) -> Path | None:
    """The folder or table of images that the configuration does not name otherwise; None for other data."""
    source = get(record, "config.data")
    place = source.get("csv") or source.get("root")
    return Path(place) if place and source["name"] in NAMELESS else None


def _told_apart(rows: list[dict[str, Any]]) -> None:
    """Put the folder above before the names of data that lie in several places."""
    places = [_place(row["record"]) for row in rows]
    by_name: dict[str, set[Path]] = {}
    for row, place in zip(rows, places, strict=True):
        by_name.setdefault(row["data"], set()).add(place or Path())
    for row, place in zip(rows, places, strict=True):
        if place and len(by_name[row["data"]]) > 1:
            row["data"] = f"{place.absolute().parent.name}/{row['data']}"


# Column -> its key in results.json, or what computes it from the content of results.json.
COLUMNS: dict[str, str | Callable[[dict[str, Any]], Any]] = {
    "accuracy": _test_accuracy,
    "prequential": lambda record: _accuracy(record, "stream"),  # while a stream was trained on
    "val_accuracy": lambda record: _accuracy(record, "val"),
    "sweep": "sweep", "data": _data, "model": "config.model.name",
    "method": "config.method.name", "norm": "config.norm.name", "engine": "config.engine.name",
    "resolution": "config.resolution", "batch_size": "config.batch_size",
    "budget_mb": "config.memory_budget_mb", "lr": "config.lr", "epochs": "config.epochs",
    "seed": "config.seed", "quantize": "config.quantize", "loss": "metrics.test/loss",
    "drift": "config.data.drift",
    "paper_mb": "memory.paper_mb", "predicted_mb": "memory.predicted_mb",
    "measured_mb": "memory.measured_mb", "lean_mb": "memory.lean_mb", "process_mb": "memory.process_mb",
    "trainable": "params.trainable", "total": "params.total", "seconds": "time.seconds",
    **{key: f"config.lite_residual.{key}"
       for key in ("kernel_size", "groups", "expansion", "pooling", "upsampling")},
    "as_paper": lambda record: not departures(record["config"]),
    "lite_residual_pretrained": "params.lite_residual_pretrained",
}  # fmt: skip
# Numbers; NaN where there is none.
FIGURES = ("accuracy", "val_accuracy", "prequential", "paper_mb", "measured_mb", "lean_mb")
# What the page shows of a run, in this order.
ON_PAGE = (
    *("data", "method", "accuracy", "lean_mb", "measured_mb", "norm", "resolution", "batch_size", "model"),
    *("engine", "budget_mb", "lr", "epochs", "seed", "paper_mb", "seconds", "sweep"),
)

"""The runs of an output folder as one table; what did not finish stands in another."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas

from tinytl.paper.recipe import departures, get, limited

log = logging.getLogger(__name__)

# column -> where results.json has it
COLUMNS = {
    "sweep": "sweep", "data": "config.data.name", "model": "config.model.name",
    "method": "config.method.name", "norm": "config.norm.name", "engine": "config.engine.name",
    "resolution": "config.resolution", "batch_size": "config.batch_size",
    "budget_mb": "config.memory_budget_mb", "lr": "config.lr", "epochs": "config.epochs",
    "seed": "config.seed", "quantize": "config.quantize", "loss": "metrics.test/loss",
    "drift": "config.data.drift",
    "paper_mb": "memory.paper_mb", "predicted_mb": "memory.predicted_mb",
    "measured_mb": "memory.measured_mb", "process_mb": "memory.process_mb",
    "trainable": "params.trainable", "total": "params.total", "seconds": "time.seconds",
}  # fmt: skip
LITE_RESIDUAL = ("kernel_size", "groups", "expansion", "pooling", "upsampling")


def read(outputs: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """(finished runs, the others with status and reason), a row per `outputs/*/results.json`.

    `accuracy` is in %, top-1 or for multilabel data the mean accuracy; a run that was tested on a part of the
    test set has none. `prequential` is a stream's, in % too. Files that are no results are named in the log
    and left out.
    """
    finished, others = [], []
    for path in sorted(outputs.glob("*/results.json")):
        try:
            record = json.loads(path.read_text())
            status = record["status"]
            if status == "finished":
                finished.append(_row(path, record))
            else:
                others.append({"name": path.parent.name, "status": status, "reason": record.get("reason")})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s: not a run's results (%s: %s)", path, type(error).__name__, error)
    columns = ["name", "accuracy", "prequential", *COLUMNS, *LITE_RESIDUAL]
    columns += ["as_paper", "lite_residual_pretrained", "record"]
    return (
        pandas.DataFrame(finished, columns=pandas.Index(columns)),
        pandas.DataFrame(others, columns=pandas.Index(["name", "status", "reason"])),
    )


def _row(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    whole = not limited(record["config"], "trainer.limit_test_batches")
    return {
        "name": path.parent.name,
        "accuracy": _accuracy(record["metrics"], "test") if whole else None,
        "prequential": _accuracy(record["metrics"], "stream"),
        **{column: get(record, key) for column, key in COLUMNS.items()},
        **{key: get(record, f"config.lite_residual.{key}") for key in LITE_RESIDUAL},
        "as_paper": not departures(record["config"]),
        "lite_residual_pretrained": get(record, "params.lite_residual_pretrained"),
        "record": record,
    }


def _accuracy(metrics: dict[str, Any], part: str) -> float | None:
    """In %; None: there is none."""
    found = metrics.get(f"{part}/top1", metrics.get(f"{part}/mean_accuracy"))
    return None if found is None else 100 * found

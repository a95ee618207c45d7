"""Describe a job of a sweep (`dry_run=true`): its memory, whether it is done, how long it will take."""

import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tinytl.errors import UserError
from tinytl.experiment.describe import describe
from tinytl.experiment.plan import Plan, plan
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.resolve import data_digest
from tinytl.experiment.sweep.progress import label
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.overrides import job_settings
from tinytl.experiment.validation.validate import validate
from tinytl.records.results import read_record

# Runs that agree in these settings take the same time per epoch.
ALIKE = (
    *("data", "model", "method", "norm", "engine", "blocks", "batch_size", "resolution", "memory_budget_mb"),
    "trainer",
)


def planned(cfg: Any) -> dict[str, Any]:
    """Return the row of a job in the table of a dry run."""
    row = {"name": cfg.name, "settings": job_settings(), "paper_mb": None, "predicted_mb": None}
    try:
        validate(cfg)
        planned_run = plan(cfg)
    except UserError as error:
        return {**row, "status": "failed", "reason": one_line(error), "predicted_seconds": None}
    experiment = planned_run.experiment
    if experiment.predicted_mb is not None:
        job = label(row["settings"], experiment.name)
        print(f"{job}: predicted {experiment.predicted_mb:.1f} MB", file=sys.stderr)
    earlier = _seconds(experiment.config)
    return {
        **row, **describe(experiment), "status": _status(cfg, planned_run), "reason": None,
        "steps": planned_run.steps, "step_seconds": planned_run.step_seconds,
        "predicted_seconds": planned_run.seconds if earlier is None else earlier,
    }  # fmt: skip


def _status(cfg: Any, planned_run: Plan) -> str:
    """Return `finished` or `planned`; also `planned` if it is unknown, because the data are missing."""
    record = read_record(Path(cfg.output_dir) / cfg.name / "results.json")
    if record.get("status") != "finished" or isinstance(planned_run.data, str):
        return "planned"
    mark = fingerprint(planned_run.experiment.settings.asked, data_digest(cfg))
    return "finished" if record.get("fingerprint") == mark else "planned"


def _seconds(config: Any) -> float | None:
    """Predict the seconds of training from an earlier run with the same settings in ALIKE; None: unknown."""
    for earlier, seconds_per_epoch in _earlier_runs(config["output_dir"]):
        if all(earlier.get(key) == config[key] for key in ALIKE):
            return seconds_per_epoch * config["epochs"]
    return None


@cache
def _earlier_runs(output_dir: str) -> list[tuple[dict[str, Any], float]]:
    """Return (configuration, seconds per epoch) of the finished runs whose records have them."""
    runs = []
    for path in sorted(Path(output_dir).glob("*/results.json")):
        record = read_record(path)
        with suppress(KeyError, TypeError, ZeroDivisionError):
            if record.get("status") == "finished":
                runs.append((record["config"], record["time"]["seconds"] / record["config"]["epochs"]))
    return runs

"""A job of a sweep that is only described: its memory, whether it is done already, how long it will take."""

import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tinytl.errors import UserError
from tinytl.experiment.describe import describe
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.resolve import data_digest, facts, num_classes, resolve
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.overrides import job_settings
from tinytl.experiment.validation.validate import validate
from tinytl.records.results import read_record

# Runs that agree in these take as long.
ALIKE = (
    *("data", "model", "method", "norm", "engine", "blocks", "batch_size", "resolution", "memory_budget_mb"),
    "trainer",
)


def planned(cfg: Any) -> dict[str, Any]:
    """One row of a sweep's plan."""
    found = {"name": cfg.name, "settings": job_settings(), "paper_mb": None, "predicted_mb": None}
    try:
        validate(cfg)
        experiment = resolve(cfg, facts(num_classes(cfg)))
    except UserError as error:
        return {**found, "status": "failed", "reason": one_line(error), "predicted_seconds": None}
    print(f"{experiment.name}: {experiment.predicted_mb:.1f} MB", file=sys.stderr)
    status, seconds = _status(cfg, experiment.settings.asked), _seconds(experiment.config)
    return {
        **found, **describe(experiment), "status": status, "reason": None, "predicted_seconds": seconds,
    }  # fmt: skip


def _status(cfg: Any, asked: dict[str, Any]) -> str:
    """`finished` if it is; `planned` if not, or if the data is not here to tell."""
    record = read_record(Path(cfg.output_dir) / cfg.name / "results.json")
    if record.get("status") != "finished":
        return "planned"
    try:
        mark = fingerprint(asked, data_digest(cfg))
    except UserError:
        return "planned"
    return "finished" if record.get("fingerprint") == mark else "planned"


def _seconds(config: Any) -> float | None:
    """Time of training, from the epochs of an earlier run that differs in no more than lr or seed, say."""
    for earlier, seconds_per_epoch in _earlier_runs(config["output_dir"]):
        if all(earlier.get(key) == config[key] for key in ALIKE):
            return seconds_per_epoch * config["epochs"]
    return None


@cache
def _earlier_runs(output_dir: str) -> list[tuple[dict[str, Any], float]]:
    """(configuration, seconds per epoch) of the finished runs; those of other versions may lack them."""
    found = []
    for path in sorted(Path(output_dir).glob("*/results.json")):
        record = read_record(path)
        with suppress(KeyError, TypeError, ZeroDivisionError):
            if record.get("status") == "finished":
                found.append((record["config"], record["time"]["seconds"] / record["config"]["epochs"]))
    return found

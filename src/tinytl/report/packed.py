"""The runs of a folder: each is a folder with a results.json, or one line of a packed file."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl.errors import UserError
from tinytl.records.results import write_text
from tinytl.report.lean_memory import with_lean_mb

log = logging.getLogger("tinytl")

SUFFIX = ".jsonl"
# What reading a file that holds no run, or making a row of the report from it, may raise.
NOT_RESULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    name: str
    record: dict[str, Any]  # the content of its results.json
    place: str  # where it was read: FILE, or FILE:LINE
    results: Path | None = None  # its results.json; None: the run is packed


def runs_of(outputs: Path) -> list[Run]:
    """The runs of a folder, or of a single packed file, sorted by name.

    Of several runs of one name a folder's is taken before a packed one, and the first packed one before
    others. What holds no run is named in the log and left out.
    """
    if outputs.is_file():
        runs = _in_packed_file(outputs)
    else:
        packed = (path for path in sorted(outputs.glob(f"*{SUFFIX}")) if path.is_file())
        runs = _in_folders(outputs)
        # Hidden files are the progress of sweeps.
        runs += [run for path in packed if not path.name.startswith(".") for run in _in_packed_file(path)]
    by_name: dict[str, Run] = {}
    for run in runs:
        by_name.setdefault(run.name, run)
    return [by_name[name] for name in sorted(by_name)]


def leave_out(place: str, error: Exception) -> None:
    """Name in the log what is left out, and why."""
    log.warning("%s: not a run's results (%s: %s)", place, type(error).__name__, error)


def _in_folders(outputs: Path) -> list[Run]:
    runs = []
    for path in sorted(outputs.glob("*/results.json")):
        try:
            runs.append(_run(path.parent.name, json.loads(path.read_bytes()), str(path), path))
        except NOT_RESULTS as error:
            leave_out(str(path), error)
    return runs


def _in_packed_file(path: Path) -> list[Run]:
    """The runs in a packed file. Of a file without any, its first error is logged for all lines."""
    runs, errors = [], {}
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}:{number}"
        try:
            content = json.loads(line)
            runs.append(_run(content["name"], content["record"], place))
        except NOT_RESULTS as error:
            errors[place] = error
    if errors and not runs:
        errors = {f"{path}:1-{len(errors)}": next(iter(errors.values()))}
    for place, error in errors.items():
        leave_out(place, error)
    return runs


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        leave_out(str(path), error)
        return []


def _run(name: Any, record: Any, place: str, results: Path | None = None) -> Run:
    if not (isinstance(name, str) and isinstance(record["status"], str)):
        raise TypeError("no name and status")
    return Run(name, record, place, results)


def pack(outputs: Path, path: Path) -> str:
    """Write the runs of a folder, finished or not, into one file, a run a line; return how many there are.

    Finished runs of versions that did not record their memory under the lean engine have it added.

    Raises UserError where there are none, or where the file cannot be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"pack={path}: the name of a packed file ends in {SUFFIX}")
    runs = runs_of(outputs)
    if not runs:
        raise UserError(f"outputs={outputs}: holds no runs")
    records = with_lean_mb([run.record for run in runs])
    lines = [
        json.dumps({"name": run.name, "record": record}) + "\n"
        for run, record in zip(runs, records, strict=True)
    ]
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(f"pack={path}: cannot be written ({error.strerror or error})") from error
    finished = sum(run.record["status"] == "finished" for run in runs)
    return f"{len(runs)} runs, {finished} of them finished, in {path}"

"""Keep the progress of a sweep across the processes of its jobs: jobs done, jobs failed, time left."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinytl.errors import UserError
from tinytl.experiment.sweep.figures import in_short
from tinytl.records.durations import time_left

VARYING = "TINYTL_VARYING"  # environment variable: the settings in which the jobs differ
THIS_SWEEP = "TINYTL_SWEEP"  # environment variable that tells sweeps of one name apart


class SweepProgress:
    """A file in the output folder, to which every job of a sweep adds a line.

    Each sweep has its own, and removes it at the end.
    """

    def __init__(self, cfg: Any) -> None:
        self.sweep = cfg.sweep or "sweep"
        self.path = Path(cfg.output_dir) / f".{self.sweep}.{os.environ.get(THIS_SWEEP, '')}.jsonl"

    @classmethod
    def begin(cls, cfg: Any, jobs: int) -> "SweepProgress":
        """Start a sweep: its jobs find the file through the environment.

        Raises UserError if the output folder cannot be written.
        """
        os.environ[THIS_SWEEP] = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        progress = cls(cfg)
        try:
            progress.path.parent.mkdir(parents=True, exist_ok=True)
            progress.path.write_text(json.dumps({"jobs": jobs, "begun": time.time()}) + "\n")
        except OSError as error:
            folder = str(progress.path.parent)[:200]
            raise UserError(f"output_dir: {folder} cannot be written ({error.strerror or error})") from error
        return progress

    def end(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def done(self, outcome: dict[str, Any]) -> str:
        """Record a job's end; return a line that says how far the sweep is."""
        job = label(outcome["settings"], outcome["name"])
        line = f"{job}: {outcome['status']}{' before, skipped' if outcome['skipped'] else ''}"
        if outcome["reason"]:
            line += f": {outcome['reason']}"
        elif outcome["metrics"]:
            line += f": {in_short(outcome)}"
        try:
            ended = self._note({key: outcome[key] for key in ("name", "status", "skipped", "seconds")})
        except (OSError, ValueError, KeyError):  # the folder is, or was, full or gone: no reason to stop
            return line
        return f"{self.sweep}: {ended}  ({line})"

    def _note(self, entry: dict[str, Any]) -> str:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        head, *entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        ended = list({entry["name"]: entry for entry in entries}.values())
        ran = sum(not job["skipped"] for job in ended)
        failed = sum(job["status"] != "finished" for job in ended)
        left = head["jobs"] - len(ended)
        seconds = (time.time() - head["begun"]) / max(ran, 1) * left
        end = f", {time_left(seconds)}" if left and ran else ""
        return f"{len(ended)} of {head['jobs']} done, {failed} failed{end}"


def label(settings: Mapping[str, str], name: str) -> str:
    """Name a job by the settings in which the jobs of its sweep differ; a single job has its run's name."""
    keys = os.environ.get(VARYING, "").split()
    return " ".join(f"{key}={settings[key]}" for key in keys if key in settings) or name


def varying(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the settings in which jobs differ, in the order in which they first appear."""
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]

"""k of N, failed, time left: of a whole sweep, whichever processes its jobs run in."""

import json
import time
from pathlib import Path
from typing import Any


class SweepProgress:
    """A file in the output folder to which every job adds a line; it stays as the sweep's log."""

    def __init__(self, cfg: Any) -> None:
        self.sweep = cfg.sweep or "sweep"
        self.path = Path(cfg.output_dir) / f".{self.sweep}.jsonl"

    def begin(self, jobs: int) -> None:
        """Start afresh."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"jobs": jobs, "begun": time.time()}) + "\n")

    def done(self, outcome: dict[str, Any]) -> str:
        """Note a job's end; return the line that says where the sweep stands."""
        entry = {key: outcome[key] for key in ("name", "status", "skipped", "seconds")}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        head, *ended = [json.loads(line) for line in self.path.read_text().splitlines()]
        ran = sum(not job["skipped"] for job in ended)
        failed = sum(job["status"] != "finished" for job in ended)
        left = head["jobs"] - len(ended)
        seconds = (time.time() - head["begun"]) / max(ran, 1) * left
        time_left = f", {duration(seconds)} left" if left and ran else ""
        what = f"{outcome['name']}: {outcome['status']}{' before, skipped' * outcome['skipped']}"
        return f"{self.sweep}: {len(ended)} of {head['jobs']} done, {failed} failed{time_left}  ({what}" + (
            f": {outcome['reason']})" if outcome["reason"] else ")"
        )


def duration(seconds: float) -> str:
    """For a person: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

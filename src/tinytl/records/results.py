"""results.json, a file per run: what was run, with which settings and versions, and what came out."""

import json
import logging
import math
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tinytl.errors import first_line
from tinytl.system.files import write_whole

log = logging.getLogger("tinytl")

# Settings that do not change a run's results: where it is written, whether it resumes, what it prints.
OF_NO_CONSEQUENCE = (
    *("name", "output_dir", "sweep", "resume", "overwrite", "retry_failed", "dry_run"),
    *("verbose", "json", "time_steps", "logger"),
    "checkpoint_every_minutes",
    *("data.root", "data.csv", "data.workers", "trainer.enable_progress_bar"),
)
PACKAGES = (
    *("tinytl", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb"),
    *("numpy", "pillow", "safetensors", "scikit-learn", "bitsandbytes"),
)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all. NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run's results.json; empty where there is no such file.

    A file that is not the record of a run is named in the log and taken as absent.
    """
    try:
        record = json.loads(path.read_bytes())
        if not (isinstance(record["status"], str) and isinstance(record["config"], dict)):
            raise TypeError("no status and configuration")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        log.warning("%s is not the record of a run (%s); it is taken as absent", path, reason)
        return {}
    return record


def _finite(value: Any) -> Any:
    """The same nested content with None in place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, Any]:
    """The git commit, whether files differ from it, package versions, and the machine."""
    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "packages": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _versions() -> dict[str, str]:
    """The versions of those PACKAGES that are installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _git(*arguments: str) -> str | None:
    """The output of a git command in this repository; None where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """The processor's model name, as Linux or Python tell it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()

"""One job of a sweep: skipped where it is done, resumed where it was interrupted, otherwise run.

Each job runs in a process of its own, so that one that the system kills for its memory is recorded and
the rest goes on.
"""

import ctypes
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import plan
from checks import check
from command_line import job_settings, one_line, one_line_errors, quiet_libraries
from fingerprint import fingerprint
from sweep_progress import SweepProgress
from tinytl.errors import UserError
from tinytl.results import read_json, write_json

log = logging.getLogger("tinytl")
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
Outcome = dict[str, Any]


def job(cfg: Any, run: Callable[[Any], None]) -> Outcome:
    """Run a job unless it is done; return its name, settings, status, reason, figures, and `skipped`."""
    begun = time.perf_counter()
    folder = Path(cfg.output_dir) / cfg.name
    with _lock(folder) as mine:
        record, skipped = _ensure(cfg, run, folder) if mine else ({"status": "running"}, True)
    outcome = {
        "name": cfg.name, "settings": job_settings(), "status": record["status"], "skipped": skipped,
        "reason": record.get("reason"), "metrics": record.get("metrics", {}),
        "memory": record.get("memory", {}), "seconds": time.perf_counter() - begun,
    }  # fmt: skip
    print(SweepProgress(cfg).done(outcome), file=sys.stderr)
    return outcome


def _ensure(cfg: Any, run: Callable[[Any], None], folder: Path) -> tuple[dict[str, Any], bool]:
    """(the job's record, whether it was there already)."""
    path = folder / "results.json"
    earlier = read_json(path)
    try:
        check(cfg)
        mark = fingerprint(cfg)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        record = {"status": "failed", "reason": one_line(error), "config": OmegaConf.to_container(cfg)}
        if earlier.get("status") != "finished":
            write_json(path, record)
        return record, False
    same = earlier if earlier.get("fingerprint") == mark else {}
    if same.get("status") == "finished":
        return same, True
    if same.get("status") in ("failed", "out_of_memory") and not cfg.retry_failed:
        return same, True
    begun = cfg.resume or same.get("status") in ("running", "interrupted")
    cfg.resume = begun and (folder / "checkpoints" / "last.ckpt").is_file()
    if not cfg.resume:  # what is there is of another configuration, of other code or data, or failed
        path.unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return _in_a_process_of_its_own(cfg, run, path), False


def _in_a_process_of_its_own(cfg: Any, run: Callable[[Any], None], path: Path) -> dict[str, Any]:
    print(f"{cfg.name}: {'goes on' if cfg.resume else 'begins'}", file=sys.stderr, flush=True)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(cfg, run, os.getpid()))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join()  # it was interrupted too, and writes that down
        raise
    record = read_json(path)
    if process.exitcode and record.get("status", "running") == "running":  # it could not say so itself
        record |= _killed(process.exitcode)
        write_json(path, record)
    return record


def _child(cfg: Any, run: Callable[[Any], None], parent: int) -> None:
    _die_with(parent)
    quiet_libraries()  # a launcher's process has said nothing of that yet
    plan.console.quiet = True  # what trains is the same in many jobs; results.json has it
    # Lightning starts the other processes of a DDP run by this command line: theirs is this job alone.
    sys.argv[1:] = [f"{key}={value}" for key, value in job_settings().items()]
    try:
        with one_line_errors():
            run(cfg)
    except KeyboardInterrupt:
        sys.exit(130)


def _die_with(parent: int) -> None:
    """End with the sweep, however it ends (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _killed(code: int) -> dict[str, str]:
    if code == -signal.SIGKILL:
        return {"status": "out_of_memory", "reason": "killed, as the system does where memory runs out"}
    if code == -signal.SIGTERM:
        return {"status": "interrupted", "reason": "terminated"}
    return {"status": "failed", "reason": f"its process ended with exit code {code}"}


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether the run's folder is this process's; two sweeps at once do not run a job twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True

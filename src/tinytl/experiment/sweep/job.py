"""One job of a sweep: skipped if it is done, resumed if it was interrupted, otherwise run.

Each job runs in a process of its own. If the system kills that for its memory, this is recorded and the
sweep goes on.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinytl.errors import UserError
from tinytl.experiment.asked import settings_as_asked
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.record.folder import (
    TEMPORARY,
    InUse,
    has_state,
    has_state_of,
    locked,
    refuse_other_settings,
)
from tinytl.experiment.resolve import data_digest
from tinytl.experiment.run import Begin, attempt
from tinytl.experiment.sweep.progress import SweepProgress, label
from tinytl.experiment.terminal.console import console
from tinytl.experiment.terminal.error_exit import one_line_errors, quiet_libraries
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.overrides import job_settings
from tinytl.experiment.validation.validate import validate
from tinytl.memory.out_of_memory import KernelKills
from tinytl.records.results import read_record, write_json
from tinytl.system.child_process import end_with_parent
from tinytl.training.stopping import STOPPING, Stopped

Outcome = dict[str, Any]
Attempt = Callable[[Any, Begin], None]
ELSEWHERE = "running elsewhere"  # status of a job that another sweep is running


def job(cfg: Any, attempt: Attempt = attempt) -> Outcome:
    """Run a job unless it is done; return its name, settings, status, reason, figures, and `skipped`.

    Its status is ELSEWHERE if another process is running it.
    """
    begun = time.perf_counter()
    folder = Path(cfg.output_dir) / cfg.name
    try:
        validate(cfg)
        OmegaConf.set_readonly(cfg, True)
        with locked(folder):
            record, skipped = _ensure(cfg, folder, lambda begin: attempt(cfg, begin))
    except InUse:
        record, skipped = {"status": ELSEWHERE}, True
    except UserError as error:
        record, skipped = _refused(cfg, error), False
    outcome = {
        "name": cfg.name, "folder": str(folder), "settings": job_settings(), "status": record["status"],
        "skipped": skipped, "reason": record.get("reason"), "metrics": record.get("metrics", {}),
        "memory": record.get("memory", {}), "seconds": time.perf_counter() - begun,
    }  # fmt: skip
    if outcome["status"] != ELSEWHERE:
        print(SweepProgress(cfg).done(outcome), file=sys.stderr)
    return outcome


def wait_for(outcome: Outcome) -> None:
    """Wait until the other process that runs a job has ended it."""
    name = label(outcome["settings"], outcome["name"])
    print(f"{name}: waits for the other sweep that is running it", file=sys.stderr, flush=True)
    with locked(Path(outcome["folder"]), wait=True):
        pass


def _refused(cfg: Any, error: UserError) -> dict[str, Any]:
    """Print why a job cannot be run; return its record."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return {"status": "failed", "reason": one_line(error), "config": OmegaConf.to_container(cfg)}


def _ensure(cfg: Any, folder: Path, attempt: Callable[[Begin], None]) -> tuple[dict[str, Any], bool]:
    """Run a job unless its record is there; return (record, whether it was there already)."""
    path = folder / "results.json"
    earlier, asked = read_record(path), settings_as_asked(cfg)
    try:
        mark = fingerprint(asked.asked, data_digest(cfg))
    except UserError as error:
        record = _refused(cfg, error)
        if earlier.get("status") != "finished":
            write_json(path, record)
        return record, False
    same = earlier if earlier.get("fingerprint") == mark else {}
    if same.get("status") == "finished":
        return same, True
    if same.get("status") in ("failed", "out_of_memory") and not cfg.retry_failed:
        return same, True
    if earlier and not same and not (cfg.overwrite or cfg.resume):
        refuse_other_settings(folder, asked, earlier)
    interrupted = bool(same) or (not earlier and has_state_of(folder, mark))
    resume = (cfg.resume or interrupted) and has_state(folder)
    # Not resumed: the folder's run is of other code or data, or has nothing to go on from.
    begin = Begin(resume, overwrite=not resume)
    return _in_a_process_of_its_own(cfg, folder, begin, attempt), False


def _in_a_process_of_its_own(
    cfg: Any, folder: Path, begin: Begin, attempt: Callable[[Begin], None]
) -> dict[str, Any]:
    """Run a job in a forked process; return its record, also if the process was killed."""
    name = label(job_settings(), cfg.name)
    print(f"{name}: {'goes on' if begin.resume else 'begins'}", file=sys.stderr, flush=True)
    kills = KernelKills()
    arguments = (folder, begin, attempt, os.getpid())
    process = multiprocessing.get_context("fork").Process(target=_child, args=arguments)
    with handed_on_to(process):
        process.start()
        process.join()
    record = read_record(folder / "results.json")
    if process.exitcode and record.get("status") == "finished":  # an earlier run's record, which stays
        return {"status": "failed", "reason": "it could not go on, as said above; its earlier results stay"}
    was_running = record.get("status", "running") == "running"
    if process.exitcode and was_running:  # it was killed before it could record that
        record |= _killed(process.exitcode, kills)
        write_json(folder / "results.json", record)
    return record


@contextmanager
def handed_on_to(process: Any) -> Iterator[None]:
    """Pass stopping signals on to a process; after it has ended, raise Stopped here, too."""
    received: list[int] = []
    parent = os.getpid()

    def hand_on(signum: int, frame: Any) -> None:
        """Note a signal, and send it to the process."""
        if os.getpid() != parent:  # in the job's process, before it has handlers of its own
            os._exit(128 + signum)
        received.append(signum)
        if process.is_alive():
            os.kill(process.pid, signum)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, hand_on) for s in STOPPING} if in_main_thread else {}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        raise Stopped(received[0])


def _child(folder: Path, begin: Begin, attempt: Callable[[Begin], None], parent: int) -> None:
    """Do a job in its own process, and end that with the exit code of what happened."""
    end_with_parent(parent)
    quiet_libraries()  # not done yet in a launcher's process
    console.quiet = True  # each job has a line of its own in the sweep's progress
    # With this command line Lightning starts the other processes of a DDP run: it must name this job alone.
    begin_settings = {"resume": str(begin.resume).lower(), "overwrite": str(begin.overwrite).lower()}
    sys.argv[1:] = [f"{key}={value}" for key, value in {**job_settings(), **begin_settings}.items()]
    try:
        with one_line_errors():
            attempt(begin)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        shutil.rmtree(folder / TEMPORARY, ignore_errors=True)


def _killed(code: int, kills: KernelKills) -> dict[str, str]:
    """Status and reason of a job whose process ended with this code before it could record why."""
    if code - 128 in STOPPING:
        return {"status": "interrupted", "reason": f"stopped by {signal.Signals(code - 128).name}"}
    if code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL and kills.happened():
            return {"status": "out_of_memory", "reason": "killed by the kernel, which had run out of memory"}
        return {"status": "interrupted", "reason": f"killed by {name}"}
    return {"status": "failed", "reason": f"its process ended with exit code {code}"}

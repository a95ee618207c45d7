"""Turn a validated configuration into results: resolve it, then describe or execute the run."""

import logging
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl.data.inspection import Inspected
from tinytl.data.loading import load_data
from tinytl.errors import UserError
from tinytl.experiment import pretrain
from tinytl.experiment.asked import as_asked, settings_as_asked
from tinytl.experiment.describe import candidates
from tinytl.experiment.execute import CLASSIFICATION, operators
from tinytl.experiment.plan import plan
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.record.folder import beginning, clear, has_state, locked, remove_leftovers
from tinytl.experiment.record.outcome import outcome_of, write_record
from tinytl.experiment.resolve import data_digest, facts, resolve
from tinytl.experiment.terminal.closing import show_closing
from tinytl.experiment.terminal.console import console
from tinytl.experiment.terminal.planned import show_plan
from tinytl.experiment.tracking.loggers import loggers
from tinytl.experiment.tracking.login import check_login
from tinytl.experiment.tracking.mirror import mirror
from tinytl.experiment.validation.validate import validate_data, validate_starting_weights
from tinytl.experiment.work import Place, Work
from tinytl.memory.out_of_memory import KernelKills
from tinytl.records.results import provenance, read_record
from tinytl.system.processes import is_first_process
from tinytl.training.stopping import Stopped, StopRequests

log = logging.getLogger("tinytl")


@dataclass(frozen=True)
class Begin:
    """What to do with an earlier run in the folder: the knobs `resume` and `overwrite`."""

    resume: bool
    overwrite: bool


def work_of(cfg: Any) -> Work:
    """Return what a configuration asks for: pre-training if it has the keys for that, otherwise a run."""
    if "teacher" not in cfg:
        return CLASSIFICATION
    return pretrain.ADAPTATION if cfg.teacher is not None else pretrain.SUPERVISED


def describe_or_execute(cfg: Any) -> None:
    """Print the description of a run (`dry_run=true`), or execute it in its locked folder.

    `cfg` is validated and read-only. If a run has several processes, the first one holds the lock.
    """
    if cfg.dry_run:
        show_plan(plan(cfg), always_json=cfg.json)
        return
    check_login(cfg.wandb.mode)
    if not is_first_process():
        console.quiet = True
        log.setLevel(logging.ERROR)
    folder = Path(cfg.output_dir) / cfg.name
    with locked(folder) if is_first_process() else nullcontext():
        try:
            attempt(cfg, Begin(cfg.resume, cfg.overwrite))
        except Stopped as stopped:
            log.warning(_how_to_go_on(stopped, folder))
            raise


def attempt(cfg: Any, begin: Begin) -> None:
    """Resolve and execute a validated configuration in its locked folder; record how the run ended."""
    work = work_of(cfg)
    folder, asked = Path(cfg.output_dir) / cfg.name, settings_as_asked(cfg)
    start = beginning(folder, asked, resume=begin.resume, overwrite=begin.overwrite)
    if start.is_done:
        log.info("finished before")
        show_closing(read_record(folder / "results.json"), folder)
        return
    if is_first_process():
        remove_leftovers(folder)
    kills = KernelKills()
    record: dict[str, Any] = {"status": "running", "sweep": cfg.sweep, "config": as_asked(cfg)}
    begun = False
    with StopRequests() as stop:
        try:
            validate_starting_weights(cfg)
            digest = data_digest(cfg)
            start.check_data(digest)
            mark = fingerprint(asked.asked, digest)
            data = load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken)
            record |= {"fingerprint": mark, "provenance": provenance(), "data": _described(data, digest)}
            if work.needs_labels:
                validate_data(cfg, data.splits)
            experiment = resolve(cfg, facts(work.num_classes(cfg, data), data.splits.task))
            record |= {"config": experiment.config, "asked": experiment.settings.replaced}
            if experiment.weighed is not None:
                record["weighed"] = candidates(experiment.weighed)
            job = work.build(experiment, data, Place(start, stop, mark, digest))
            record["provenance"]["operators"] = operators(experiment, job.trainer)
            with mirror(experiment) as mirrored:
                begun = True
                if is_first_process() and not start.keeps_results:
                    clear(folder, start)
                    if elsewhere := write_record(folder, record):
                        raise UserError(elsewhere)
                record |= work.fit(experiment, job, loggers(experiment, mirrored.logger))
                record["status"] = "finished"
                elsewhere = write_record(folder, record)
                mirrored.finish(record, folder)
                if elsewhere:
                    raise UserError(elsewhere)
        except BaseException as raised:
            error = stop.cause_of(raised)
            if record["status"] != "finished":
                record |= outcome_of(error, kills)
                # Earlier results stay if this run failed before it began, or goes on with a finished one.
                if not start.keeps_results and (begun or not (folder / "results.json").exists()):
                    write_record(folder, record)
            if error is not raised:
                raise error from raised
            raise
    show_closing(record, folder)


def _described(data: Inspected, digest: str) -> dict[str, Any]:
    """Describe the data for results.json: their hash, the images of each part, and how many were left out."""
    images = {name: len(part) for name, part in data.splits.parts.items()}
    return {"sha256": digest, "images": images, "left_out": data.left_out}


def _how_to_go_on(stopped: Stopped, folder: Path) -> str:
    """Return the last line of a run that was asked to stop."""
    if not has_state(folder):
        return f"stopped by {stopped} before there was anything to save; the same command begins again"
    arguments = [a for a in sys.argv if not a.startswith(("resume=", "overwrite="))]
    return f"stopped by {stopped}; go on with: {shlex.join(['python', *arguments, 'resume=true'])}"

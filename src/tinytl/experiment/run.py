"""Turn a validated configuration into results: resolve it, then execute the run in its folder."""

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
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.record.folder import (
    Beginning,
    beginning,
    clear,
    has_state,
    locked,
    remove_leftovers,
)
from tinytl.experiment.record.outcome import outcome_of, write_record
from tinytl.experiment.record.settings import Settings
from tinytl.experiment.resolve import data_digest, facts, resolve
from tinytl.experiment.terminal.closing import show_closing
from tinytl.experiment.terminal.console import console
from tinytl.experiment.tracking.loggers import loggers
from tinytl.experiment.tracking.login import check_login
from tinytl.experiment.tracking.mirror import mirror
from tinytl.experiment.validation.inputs import validate_data, validate_starting_weights
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


def execute_in_folder(cfg: Any) -> None:
    """Execute the run of a validated, read-only configuration in its locked folder.

    If a run has several processes, the first one holds the lock.
    """
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
    folder, asked = Path(cfg.output_dir) / cfg.name, settings_as_asked(cfg)
    start = beginning(folder, asked, resume=begin.resume, overwrite=begin.overwrite)
    if start.is_done:
        log.info("finished before")
        show_closing(read_record(folder / "results.json"), folder)
        return
    if is_first_process():
        remove_leftovers(folder)
    run, kills = _Run(cfg, folder, asked, start), KernelKills()
    with StopRequests() as stop:
        try:
            run.execute(stop)
        except BaseException as raised:
            error = stop.cause_of(raised)
            run.record_end(error, kills)
            if error is not raised:
                raise error from raised
            raise
    show_closing(run.record, folder)


class _Run:
    """A run that is being executed, and its record, which becomes results.json."""

    def __init__(self, cfg: Any, folder: Path, asked: Settings, start: Beginning) -> None:
        self.cfg, self.folder, self.asked, self.start = cfg, folder, asked, start
        self.record: dict[str, Any] = {"status": "running", "sweep": cfg.sweep, "config": as_asked(cfg)}
        self.has_begun = False  # from then on the folder's earlier run is not kept

    def execute(self, stop: StopRequests) -> None:
        """Do the work that the configuration asks for, and write what came out."""
        work = work_of(self.cfg)
        place, data = self._inspect(stop)
        experiment = self._resolve(work, data)
        job = work.build(experiment, data, place)
        self.record["provenance"]["operators"] = operators(experiment, job.trainer)
        with mirror(experiment) as mirrored:
            self._begin()
            self.record |= work.fit(experiment, job, loggers(experiment, mirrored.logger))
            self.record["status"] = "finished"
            elsewhere = write_record(self.folder, self.record)
            mirrored.finish(self.record, self.folder)
            if elsewhere:
                raise UserError(elsewhere)

    def record_end(self, error: BaseException, kills: KernelKills) -> None:
        """Record that the run has ended with an error, unless its results are there already.

        Earlier results stay where this run failed before it began, or goes on with a finished one.
        """
        if self.record["status"] == "finished":
            return
        self.record |= outcome_of(error, kills)
        replaces = self.has_begun or not (self.folder / "results.json").exists()
        if replaces and not self.start.keeps_results:
            write_record(self.folder, self.record)

    def _inspect(self, stop: StopRequests) -> tuple[Place, Inspected]:
        """Read starting weights and data, and record what the results will depend on."""
        cfg = self.cfg
        validate_starting_weights(cfg)
        digest = data_digest(cfg)
        self.start.check_data(digest)
        place = Place(self.start, stop, fingerprint(self.asked.asked, digest), digest)
        data = load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken)
        self.record |= {
            "fingerprint": place.fingerprint, "provenance": provenance(), "data": _described(data, digest),
        }  # fmt: skip
        return place, data

    def _resolve(self, work: Work, data: Inspected) -> Experiment:
        """Make every decision, and record them."""
        if work.needs_labels:
            validate_data(self.cfg, data.splits)
        classes = work.num_classes(self.cfg, data)
        experiment = resolve(self.cfg, facts(classes, data.splits.task))
        self.record |= {"config": experiment.config, "asked": experiment.settings.replaced}
        if experiment.weighed is not None:
            self.record["weighed"] = candidates(experiment.weighed)
        return experiment

    def _begin(self) -> None:
        """Clear the folder of an earlier run, and write the record. Raises UserError where that fails."""
        self.has_begun = True
        if is_first_process() and not self.start.keeps_results:
            clear(self.folder, self.start)
            if elsewhere := write_record(self.folder, self.record):
                raise UserError(elsewhere)


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

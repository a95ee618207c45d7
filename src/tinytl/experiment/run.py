"""From a validated configuration to results: resolve it, then describe or execute it."""

import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl.data.inspection import Inspected
from tinytl.data.loading import load_data
from tinytl.errors import UserError
from tinytl.experiment import describe, execute
from tinytl.experiment.execute import Place
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.fingerprint import fingerprint
from tinytl.experiment.record.folder import beginning, clear, has_state, locked, remove_leftovers
from tinytl.experiment.record.outcome import outcome_of, write_record
from tinytl.experiment.resolve import as_asked, data_digest, facts, num_classes, resolve, settings_as_asked
from tinytl.experiment.tracking.mirror import mirror
from tinytl.experiment.validation.validate import validate_data, validate_starting_weights
from tinytl.memory.out_of_memory import KernelKills
from tinytl.records.results import provenance
from tinytl.system.processes import is_first_process
from tinytl.training.stopping import Stopped, StopRequests

log = logging.getLogger("tinytl")


@dataclass(frozen=True)
class Work:
    """What is done with an experiment: pre-training does something else than a run."""

    build: Callable[[Experiment, Inspected, Place], Any]
    fit: Callable[[Experiment, Any, Any], dict[str, Any]]
    num_classes: Callable[[Any, Inspected], int]
    needs_labels: bool = True


def classes_of_the_data(cfg: Any, found: Inspected) -> int:
    """How many classes a classifier of the data has."""
    return num_classes(cfg, len(found.splits.class_names))


CLASSIFICATION = Work(execute.build, execute.fit_and_test, classes_of_the_data)


@dataclass(frozen=True)
class Begin:
    """How a run is to begin where there was one before: as `resume` and `overwrite` say."""

    resume: bool
    overwrite: bool


def work_of(cfg: Any) -> Work:
    """What a configuration asks for: pre-training where it has the keys for that, otherwise a run."""
    if "teacher" not in cfg:
        return CLASSIFICATION
    from tinytl.experiment import pretrain

    return pretrain.ADAPTATION if cfg.teacher is not None else pretrain.SUPERVISED


def describe_or_execute(cfg: Any) -> None:
    """Print the description of a run (`dry_run=true`), or execute it in its folder, which is locked.

    `cfg` is validated and read-only. Of several processes of one run the first holds the folder.
    """
    if cfg.dry_run:
        describe.show(resolve(cfg, facts(num_classes(cfg))))
        return
    if not is_first_process():
        describe.console.quiet = True
        log.setLevel(logging.ERROR)
    folder = Path(cfg.output_dir) / cfg.name
    with locked(folder) if is_first_process() else nullcontext():
        try:
            attempt(cfg, Begin(cfg.resume, cfg.overwrite))
        except Stopped as stopped:
            log.warning(_how_to_go_on(stopped, folder))
            raise


def attempt(cfg: Any, begin: Begin) -> None:
    """Resolve and execute a validated configuration in a folder that this process holds; record the end."""
    work = work_of(cfg)
    folder, asked = Path(cfg.output_dir) / cfg.name, settings_as_asked(cfg)
    start = beginning(folder, asked, resume=begin.resume, overwrite=begin.overwrite)
    if start.is_done:
        log.info("finished before: %s", folder / "results.json")
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
            found = load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken)
            record |= {"fingerprint": mark, "provenance": provenance(), "data": _described(found, digest)}
            if work.needs_labels:
                validate_data(cfg, found.splits)
            experiment = resolve(cfg, facts(work.num_classes(cfg, found)))
            record |= {"config": experiment.config, "asked": experiment.settings.replaced}
            job = work.build(experiment, found, Place(start, stop, mark, digest))
            record["provenance"]["operators"] = execute.operators(experiment, job.trainer)
            with mirror(experiment) as mirrored:
                begun = True
                if is_first_process() and not start.keeps_results:
                    clear(folder, start)
                    if elsewhere := write_record(folder, record):
                        raise UserError(elsewhere)
                record |= work.fit(experiment, job, mirrored.logger)
                record["status"] = "finished"
                elsewhere = write_record(folder, record)
                mirrored.finish(record, folder)
                if elsewhere:
                    raise UserError(elsewhere)
        except BaseException as raised:
            error = stop.cause_of(raised)
            if record["status"] != "finished":
                record |= outcome_of(error, kills)
                # A mistake that ends a run before it begins, and a resumed run that fails, cost no results.
                if not start.keeps_results and (begun or not (folder / "results.json").exists()):
                    write_record(folder, record)
            if error is not raised:
                raise error from raised
            raise
    log.info("results: %s", folder / "results.json")


def _described(found: Inspected, digest: str) -> dict[str, Any]:
    """The data of a run, for results.json: a hash of them, images by part, and how many were left out."""
    images = {name: len(part) for name, part in found.splits.parts.items()}
    return {"sha256": digest, "images": images, "left_out": found.left_out}


def _how_to_go_on(stopped: Stopped, folder: Path) -> str:
    """The line that a run which was asked to stop ends with."""
    if not has_state(folder):
        return f"stopped by {stopped} before there was anything to save; the same command begins again"
    arguments = [a for a in sys.argv if not a.startswith(("resume=", "overwrite="))]
    return f"stopped by {stopped}; go on with: {shlex.join(['python', *arguments, 'resume=true'])}"

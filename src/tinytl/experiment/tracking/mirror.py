"""Weights & Biases: a mirror of results.json, offline unless the user asks for more."""

import atexit
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from tinytl.errors import UserError
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.folder import TEMPORARY
from tinytl.paper import tables as paper
from tinytl.system.processes import is_first_process

log = logging.getLogger("tinytl")
WEIGHTS = "weights.safetensors"
SECONDS = 60  # that W&B may take to begin, and to end
CHOICES = ("data", "model", "method", "norm", "engine")


class MirrorLogger(WandbLogger):
    """W&B's logger; its first failure is a line in the log, and what would follow is left out."""

    def __init__(self, run: Any) -> None:
        super().__init__(experiment=run)
        self.failed = False

    def attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Do something with W&B, unless it has failed before."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # of any kind: the network, its service, the disk
            self.failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("W&B could not %s (%s); results.json has everything", what, reason)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Send metrics."""
        self.attempt("log metrics", lambda: super(MirrorLogger, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Send nothing: the configuration has been given."""

    def finalize(self, status: str) -> None:
        """Do nothing: `mirror` ends the run."""


class Mirror:
    """The W&B run beside a run of ours; `logger` is None where there is none."""

    def __init__(self, logger: MirrorLogger | None, keep_weights: bool = False) -> None:
        self.logger, self.keep_weights = logger, keep_weights

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Send the figures of a finished run and, if asked for, its weights."""
        if self.logger is None:
            return
        self.logger.attempt("take the results", lambda: summarize(self.logger, record))
        if self.keep_weights:
            self.logger.attempt("take the weights", lambda: upload(self.logger, folder))


@contextmanager
def mirror(experiment: Experiment) -> Iterator[Mirror]:
    """One W&B run per job, closed with it; none with wandb=disabled, and in one process of several only.

    The id follows from the run's folder, so that a resumed job goes on in its run. Under an agent of a
    W&B sweep id and project are the sweep's, and its parameters replace what stands under their names:
    `method: tinytl` the whole of `method`. So the names also stand under `chosen`, for the dashboards.
    Raises UserError where W&B refuses what was asked for (no login for wandb=online); where it fails in any
    other way the run goes on without it.
    """
    wanted = experiment.wandb.mode != "disabled" and is_first_process()
    run = _begin(experiment) if wanted else None
    if run is None:
        yield Mirror(None)
        return
    logger = MirrorLogger(run)
    logger.attempt(
        "name its axis", lambda: run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    )
    try:
        yield Mirror(logger, experiment.wandb.artifact)
    except BaseException:
        logger.attempt("end", lambda: _end(run, 1))  # not `with run:`, which prints a traceback
        raise
    logger.attempt("end", lambda: _end(run, 0))


def _end(run: Any, exit_code: int) -> None:
    """End a run and W&B's service, whose socket would stay among the temporary files of a sweep's job."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown(exit_code)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libraries that are imported make their temporary folders here: those of a killed run go with it."""
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _begin(experiment: Experiment) -> Any:
    folder, asked, config = experiment.folder, experiment.wandb, experiment.config
    with _temporary_files_in(folder / TEMPORARY):
        import wandb  # here: a run without W&B starts sooner
        import wandb.errors
    chosen = {group: config[group]["name"] for group in CHOICES}
    limits = wandb.Settings(
        silent=True, init_timeout=SECONDS, finish_timeout=SECONDS, finish_timeout_raises=True
    )
    try:
        return wandb.init(
            mode=asked.mode, project=asked.project, entity=asked.entity, name=experiment.name,  # type: ignore[arg-type]
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:12],
            group=experiment.sweep, job_type=chosen["method"],
            tags=[chosen["data"], chosen["model"], chosen["norm"], *asked.tags], dir=folder,
            config={**config, "chosen": chosen}, settings=limits,
            resume="allow" if asked.mode == "online" else None,
        )  # fmt: skip
    except wandb.errors.UsageError as error:
        raise UserError(f"wandb.mode={asked.mode}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("W&B could not begin (%s); the run goes on without it", reason)
        return None


def summarize(logger: MirrorLogger | None, record: dict[str, Any]) -> None:
    """Put the figures of results.json where panels can plot them, and the paper's beside.

    A panel cannot choose among the runs of a workspace, so the accuracy also stands under
    `accuracy/DATASET`, which the runs on other data sets do not have.
    """
    if logger is None:
        return
    data, metrics = record["config"]["data"]["name"], record["metrics"]
    figures = _flat(
        {section: record[section] for section in ("memory", "params", "time") if section in record}
    )
    figures[f"accuracy/{data}"] = metrics.get("test/top1", metrics.get("test/mean_accuracy"))
    if data in paper.data_sets():
        figures["paper"] = paper_table(data)
    logger.experiment.log(figures)  # not in the summary alone: bars and lines are drawn from what was logged
    logger.experiment.summary.update({**metrics, "status": record["status"]})


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested numbers under keys with slashes; what was not measured is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}/")
        elif isinstance(value, int | float):
            flat[f"{above}{key}"] = value
    return flat


def paper_table(data: str) -> Any:
    """A W&B table of what the paper reports on a data set; memory is its own count, accuracy in %."""
    import wandb

    rows = [row for row in paper.table2() if data in row.top1]
    return wandb.Table(
        columns=["table", "method", "resolution", "train_memory_mb", "top1"],
        data=[["Table 2", row.method, row.resolution, row.train_memory_mb, row.top1[data]] for row in rows],
    )


def upload(logger: MirrorLogger | None, folder: Path) -> None:
    """Keep the weights with W&B: what was trained and tested, or what a pre-training ended with."""
    found = [path for place in ("checkpoints", ".") if (path := folder / place / WEIGHTS).is_file()]
    if logger is None or not found:
        return
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name)[:128]  # what W&B allows
    import wandb

    artifact = wandb.Artifact(
        name, type="model", description="The trainable part: load with checkpoint=FILE."
    )
    artifact.add_file(str(found[0]))
    logger.experiment.log_artifact(artifact)

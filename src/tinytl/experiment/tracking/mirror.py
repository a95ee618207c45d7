"""Copy results.json to Weights & Biases, offline unless the user asks for more."""

import atexit
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from tinytl.errors import UserError, first_line
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.folder import TEMPORARY
from tinytl.experiment.record.predictions import PICTURE
from tinytl.paper import tables as paper
from tinytl.system.processes import is_first_process
from tinytl.weights.adapter_places import ADAPTER, CONFIG, MODEL

log = logging.getLogger("tinytl")
WHOLE = "weights.safetensors"  # what a pre-training ends with
SECONDS = 60  # that W&B may take to begin a run, and to end it
CHOICES = ("data", "model", "method", "norm", "engine")


class MirrorLogger(WandbLogger):
    """W&B's logger. It logs its first failure in one line, and sends nothing after that."""

    def __init__(self, run: Any) -> None:
        super().__init__(experiment=run)
        self.failed = False

    def attempt(self, task: str, action: Callable[[], Any]) -> None:
        """Do a task with W&B, unless W&B has failed before."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # of any type: the network, W&B's service or the disk failed
            self.failed = True
            log.warning("W&B could not %s (%s); results.json has everything", task, first_line(error))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Send metrics."""
        self.attempt("log metrics", lambda: super(MirrorLogger, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Send nothing: W&B was given the configuration at its start."""

    def finalize(self, status: str) -> None:
        """Do nothing: `mirror` ends the run."""


class Mirror:
    """The W&B run that mirrors a run; `logger` is None if there is none."""

    def __init__(self, logger: MirrorLogger | None, keep_weights: bool = False) -> None:
        self.logger, self.keep_weights = logger, keep_weights

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Send the figures of a finished run and, if asked for, its weights."""
        if self.logger is None:
            return
        self.logger.attempt("take the results", lambda: summarize(self.logger, record))
        self.logger.attempt("take the classes", lambda: show_classes(self.logger, record, folder))
        if self.keep_weights:
            self.logger.attempt("take the weights", lambda: upload(self.logger, folder))


@contextmanager
def mirror(experiment: Experiment) -> Iterator[Mirror]:
    """Open a W&B run, and close it at the end. With wandb=disabled, or in a second process, open none.

    Its id is a hash of the run's folder, so that a resumed run goes on in the same W&B run. Under an agent
    of a W&B sweep, id and project are the sweep's. The agent's parameters replace configuration of the same
    key (`method: tinytl` replaces all of `method`), so names are also kept under `chosen`, for dashboards.
    Raises UserError if W&B refuses the settings (wandb=online without a login); if it fails in any other
    way, the run goes on without it.
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
    """End a W&B run and W&B's service, whose socket would stay among the temporary files of a job."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown(exit_code)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have libraries put temporary files into the run's folder, where those of a killed run are cleared."""
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _begin(experiment: Experiment) -> Any:
    """Begin a W&B run; None where that fails. Raises UserError where W&B refuses the settings."""
    folder, asked, config = experiment.folder, experiment.wandb, experiment.config
    with _temporary_files_in(folder / TEMPORARY):
        import wandb  # not at the top: a run without W&B starts sooner
        import wandb.errors
    chosen = {group: config[group]["name"] for group in CHOICES}
    limits = wandb.Settings(
        silent=True, init_timeout=SECONDS, finish_timeout=SECONDS, finish_timeout_raises=True
    )
    try:
        return wandb.init(
            mode=asked.mode, project=asked.project, entity=asked.entity,  # type: ignore[arg-type]
            name=_unless("WANDB_NAME", experiment.name),
            id=_unless("WANDB_RUN_ID", hashlib.sha256(str(folder).encode()).hexdigest()[:12]),
            group=_unless("WANDB_RUN_GROUP", experiment.sweep),
            job_type=_unless("WANDB_JOB_TYPE", chosen["method"]),
            tags=[chosen["data"], chosen["model"], chosen["norm"], *asked.tags, *_tags_of_environment()],
            dir=_unless("WANDB_DIR", folder),
            config={**config, "chosen": chosen}, settings=limits,
            resume="allow" if asked.mode == "online" else None,
        )  # fmt: skip
    except wandb.errors.UsageError as error:
        raise UserError(f"wandb.mode={asked.mode}: {first_line(error)}") from error
    except Exception as error:  # of any type
        log.warning("W&B could not begin (%s); the run goes on without it", first_line(error))
        return None


def _unless(variable: str, value: Any) -> Any:
    """Return what W&B is to be given; None where a variable of the environment says it, which W&B reads."""
    return None if os.environ.get(variable) else value


def _tags_of_environment() -> list[str]:
    """Return the tags of WANDB_TAGS, which W&B forgets where it is given others."""
    return [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]


def summarize(logger: MirrorLogger | None, record: dict[str, Any]) -> None:
    """Log the figures of results.json, which panels plot, and those of the paper.

    A panel cannot choose among the runs of a workspace. Accuracy is therefore also logged as
    `accuracy/DATASET`, which runs on other data sets do not have.
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
    logger.experiment.log(figures)  # bars and lines are drawn from what was logged, not from the summary
    logger.experiment.summary.update({**metrics, "status": record["status"]})


def show_classes(logger: MirrorLogger | None, record: dict[str, Any], folder: Path) -> None:
    """Log the figures of each class as a table, and the picture of the confusion matrix if there is one."""
    if logger is None or not record.get("classes"):
        return
    import wandb

    classes = record["classes"]
    columns = list(next(iter(classes.values())))
    rows: list[Any] = [[name, *(figures[key] for key in columns)] for name, figures in classes.items()]
    shown: dict[str, Any] = {"test/classes": wandb.Table(columns=["class", *columns], data=rows)}
    if (folder / PICTURE).is_file():
        shown["test/confusion"] = wandb.Image(str(folder / PICTURE))
    logger.experiment.log(shown)


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested numbers by keys with slashes, without those that were not measured."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}/")
        elif isinstance(value, int | float):
            flat[f"{above}{key}"] = value
    return flat


def paper_table(data: str) -> Any:
    """Return a W&B table of the paper's results on a data set: MB as the paper counts them, accuracy in %."""
    import wandb

    rows = [row for row in paper.table2() if data in row.top1]
    return wandb.Table(
        columns=["table", "method", "resolution", "train_memory_mb", "top1"],
        data=[["Table 2", row.method, row.resolution, row.train_memory_mb, row.top1[data]] for row in rows],
    )


def upload(logger: MirrorLogger | None, folder: Path) -> None:
    """Upload the weights that a run has tested, or those that a pre-training ended with."""
    adapter = folder / ADAPTER
    files = [path for path in (adapter / MODEL, adapter / CONFIG) if path.is_file()]
    files = files or [path for path in (folder / WHOLE,) if path.is_file()]
    if logger is None or not files:
        return
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name)[:128]  # what W&B allows
    import wandb

    artifact = wandb.Artifact(
        name, type="model", description="What was trained: load with checkpoint=FOLDER_OR_FILE."
    )
    for file in files:
        artifact.add_file(str(file))
    logger.experiment.log_artifact(artifact)

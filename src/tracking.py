"""Weights & Biases: a mirror of results.json, offline unless the user asks for more."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
import wandb.errors
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger

from tinytl.errors import UserError
from tinytl.report import paper

CHOICES = ("data", "model", "method", "norm", "engine")


@contextmanager
def wandb_run(cfg: Any, resolved: dict[str, Any], folder: Path) -> Iterator[WandbLogger | None]:
    """One W&B run per job, closed with it; None with wandb=disabled.

    The id follows from the run's folder, so that a resumed job goes on in its run. Under an agent of a
    W&B sweep id and project are the sweep's, and its parameters replace what stands under their names:
    `method: tinytl` the whole of `method`. So the names also stand under `chosen`, for the dashboards.
    """
    if cfg.wandb.mode == "disabled":
        yield None
        return
    chosen = {group: cfg[group].name for group in CHOICES}
    try:
        run = wandb.init(
            mode=cfg.wandb.mode, project=cfg.wandb.project, entity=cfg.wandb.entity, name=cfg.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:12],
            group=OmegaConf.select(cfg, "sweep"), job_type=cfg.method.name,
            tags=[cfg.data.name, cfg.model.name, cfg.norm.name, *cfg.wandb.tags], dir=folder,
            config={**resolved, "chosen": chosen}, settings=wandb.Settings(silent=True),
            resume="allow" if cfg.wandb.mode == "online" else None,
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise UserError(f"wandb.mode={cfg.wandb.mode}: {str(error).splitlines()[0]}") from error
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    try:
        yield WandbLogger(experiment=run)
    except BaseException:
        run.finish(exit_code=1)  # not `with run:`, which prints the traceback of every error
        raise
    run.finish()


def summarize(logger: WandbLogger | None, record: dict[str, Any]) -> None:
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


def paper_table(data: str) -> wandb.Table:
    """What the paper reports on a data set; memory is its own count, accuracy in %."""
    rows = [row for row in paper.table2() if data in row.top1]
    return wandb.Table(
        columns=["table", "method", "resolution", "train_memory_mb", "top1"],
        data=[["Table 2", row.method, row.resolution, row.train_memory_mb, row.top1[data]] for row in rows],
    )


def upload(logger: WandbLogger | None, folder: Path) -> None:
    """Keep the best weights of a run, or the last, with W&B: the trainable part only."""
    found = [path for name in ("best", "last") if (path := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    if logger is None or not found:
        return
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name)[:128]  # what W&B allows
    artifact = wandb.Artifact(
        name, type="model", description="The trainable part: load with checkpoint=FILE."
    )
    artifact.add_file(str(found[0]))
    logger.experiment.log_artifact(artifact)

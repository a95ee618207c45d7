"""Weights & Biases: a mirror of results.json, offline unless the user asks for more."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
import wandb.errors
from pytorch_lightning.loggers import WandbLogger

from tinytl.errors import UserError


@contextmanager
def wandb_run(cfg: Any, resolved: dict[str, Any], folder: Path) -> Iterator[WandbLogger | None]:
    """One W&B run per job, closed with it; None with wandb=disabled.

    The id follows from the run's folder, so that a resumed job goes on in its run.
    """
    if cfg.wandb.mode == "disabled":
        yield None
        return
    try:
        run = wandb.init(
            mode=cfg.wandb.mode, project=cfg.wandb.project, entity=cfg.wandb.entity, name=cfg.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:12], job_type=cfg.method.name,
            tags=[cfg.data.name, cfg.model.name, cfg.norm.name, *cfg.wandb.tags], dir=folder,
            config=resolved, resume="allow" if cfg.wandb.mode == "online" else None,
            settings=wandb.Settings(silent=True),
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
    """Put the figures of results.json into the run's summary, where panels can plot them."""
    if logger is None:
        return
    for section in ("metrics", "memory", "params", "time"):
        for key, value in record[section].items():
            logger.experiment.summary[key if section == "metrics" else f"{section}/{key}"] = value
    logger.experiment.summary["status"] = record["status"]

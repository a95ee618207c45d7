"""The programs that Hydra configures: a run, a pre-training, and the jobs of their sweeps."""

from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tinytl.experiment.pretrain import work_of
from tinytl.experiment.run import Work, classification, run
from tinytl.experiment.schema import CONF, PretrainConfig
from tinytl.experiment.sweep.job import job
from tinytl.experiment.sweep.planned import planned
from tinytl.experiment.terminal.program import guarded, one_line_errors


def run_program() -> None:
    """`python src/run.py`."""
    guarded(_run)


def pretrain_program() -> None:
    """`python src/pretrain.py`."""
    ConfigStore.instance().store(name="schema", node=PretrainConfig)
    guarded(_pretrain)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(cfg: Any) -> Any:
    return _one_or_a_job(cfg, classification)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="pretrain")
def _pretrain(cfg: Any) -> Any:
    return _one_or_a_job(cfg, work_of)


def _one_or_a_job(cfg: Any, work_of: Callable[[Any], Work]) -> Any:
    """A run; in a sweep Hydra calls this once per job."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return planned(cfg) if cfg.dry_run else job(cfg, work_of)
    with one_line_errors():
        run(cfg, work_of)
    return None

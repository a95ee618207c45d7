"""The programs that Hydra configures: a run, a pre-training, and the jobs of their sweeps.

Lightning takes seconds to import. Modules that need it are imported inside functions, so that a mistake in
the configuration is reported first.
"""

import os
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from tinytl.experiment.schema import CONF, PretrainConfig
from tinytl.experiment.terminal.error_exit import guarded, one_line_errors
from tinytl.experiment.validation.validate import validate


def run_program() -> None:
    """Run `python src/run.py`."""
    guarded(_run)


def pretrain_program() -> None:
    """Run `python src/pretrain.py`."""
    ConfigStore.instance().store(name="schema", node=PretrainConfig)
    guarded(_pretrain)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(cfg: Any) -> Any:
    return _run_or_job(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="pretrain")
def _pretrain(cfg: Any) -> Any:
    return _run_or_job(cfg)


def _run_or_job(cfg: Any) -> Any:
    """Do one run, or one job of a sweep; Hydra calls this once per job."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from tinytl.experiment.sweep.job import job
        from tinytl.experiment.sweep.planned import planned

        return planned(cfg) if cfg.dry_run else job(cfg)
    with one_line_errors():
        run(cfg)
    return None


def run(cfg: Any) -> None:
    """Validate the configuration, make it read-only and resolve it; then describe or execute the run."""
    validate(cfg)
    OmegaConf.set_readonly(cfg, True)
    if "LOCAL_RANK" not in os.environ:  # Lightning sets it for the other processes of a run
        from tinytl.experiment.terminal.opening import show_network

        show_network(cfg)
    if cfg.dry_run:
        from tinytl.experiment.plan import plan
        from tinytl.experiment.terminal.planned import show_plan

        show_plan(plan(cfg), always_json=cfg.json)
        return
    from tinytl.experiment.run import execute_in_folder

    execute_in_folder(cfg)

"""Compose the real configuration as the programs do."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tinytl.experiment.asked import num_classes
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.resolve import facts, resolve
from tinytl.experiment.schema import CONF
from tinytl.experiment.terminal.overrides import prepared


def composed(*overrides: str, config: str = "config", hydra: bool = False) -> Any:
    """The configuration that these overrides ask for; `hydra`: with Hydra's own part."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, prepared(list(overrides)), return_hydra_config=hydra)


def experiment(*overrides: str) -> Experiment:
    """The Experiment that these overrides ask for."""
    cfg = composed(*overrides)
    return resolve(cfg, facts(num_classes(cfg)))

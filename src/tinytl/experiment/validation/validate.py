"""Refuse a configuration that cannot work, before any work is done."""

from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinytl.data.loading import TABLE_LOADER, find_loader
from tinytl.errors import UserError
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.suggestions import did_you_mean
from tinytl.experiment.validation.combinations import check_budget, check_combinations, check_pretraining
from tinytl.experiment.validation.devices import check_devices
from tinytl.experiment.validation.keys import refuse_unknown_keys
from tinytl.experiment.validation.numbers import check_numbers
from tinytl.experiment.validation.sizes import check_sizes
from tinytl.experiment.validation.texts import check_names, check_texts
from tinytl.methods import AUTO, METHODS
from tinytl.networks.architecture import check_model
from tinytl.networks.norms import NORM_NAMES
from tinytl.networks.quantize import QUANTIZERS

ONE_OF = {
    "quantize": (*QUANTIZERS, "off"),
    "test_weights": ("auto", "best", "last"),
    "classifier": ("random", "class_means"),
    "class_weights": (None, "balanced"),
    "data.task": ("multiclass", "multilabel", "auto"),
    "norm.name": NORM_NAMES,
    "engine.name": ("lean", "stock"),
    "engine.optimizer_bits": (8, 32),
    "engine.compile": ("auto", "on", "off"),
    "wandb.mode": ("offline", "online", "disabled"),
    "logger": (None, "tensorboard"),
    "lite_residual.upsampling": ("bilinear", "nearest"),
}


def validate(cfg: Any) -> None:
    """Raise UserError naming the first setting that cannot work."""
    refuse_unknown_keys(cfg)
    _refuse_missing_values(cfg)
    check_texts(_values(cfg))
    _check_options(cfg)
    check_names(cfg)
    check_budget(cfg)
    check_numbers(cfg)
    check_devices(cfg)
    find_loader(cfg.data.loader)
    check_model(cfg.model.name)
    check_combinations(cfg)
    _check_logger(cfg)
    check_pretraining(cfg)
    check_sizes(cfg)


def _refuse_missing_values(cfg: Any) -> None:
    """Raise UserError for a setting that must be given; a dry run can do without the data."""
    missing = OmegaConf.missing_keys(cfg) - ({"data.root"} if cfg.dry_run else set())
    if cfg.data.get("csv") is None and cfg.data.get("loader") == TABLE_LOADER and not cfg.dry_run:
        missing.add("data.csv")
    if missing:
        raise UserError(f"{min(missing)}=... must be given")


def _values(cfg: Any) -> Any:
    """The configuration as plain data. Raises UserError where a value refers to one that is not there."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error


def _check_options(cfg: Any) -> None:
    """Raise UserError for a value that is none of those a setting can have."""
    for key, options in {**ONE_OF, "method.name": (*METHODS, AUTO)}.items():
        value = OmegaConf.select(cfg, key)
        if value not in options:
            names = ["null" if option is None else str(option) for option in options]
            hint = did_you_mean(str(value), names)
            raise UserError(f"{key}={value}: must be one of {', '.join(names)}{hint}")


def _check_logger(cfg: Any) -> None:
    """Raise UserError where the package of a logger is missing."""
    if cfg.logger == "tensorboard" and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise UserError("logger=tensorboard: the package is missing: pip install -e '.[tensorboard]'")

"""Refuse settings that cannot work together."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinytl.assembly import HALF
from tinytl.data.loading import FOLDER_LOADER, TABLE_LOADER
from tinytl.errors import UserError
from tinytl.experiment.asked import engine_plan
from tinytl.experiment.validation.texts import SHOWN
from tinytl.methods import AUTO, METHODS
from tinytl.weights.named_weights import check_name

NO_VALIDATION = "{} needs a validation set: data.val_fraction above 0"
NO_CLASS_MEANS = "classifier=class_means: images must have one class each, and be no stream"


def check_combinations(cfg: Any) -> None:
    """Raise UserError naming the first settings that contradict each other."""
    _check_method(cfg)
    check_name(cfg.checkpoint, cfg.model.name, cfg.norm.name)
    _check_engine(cfg)
    _check_stream(cfg)
    _check_table(cfg)
    _check_validation(cfg)


def _check_method(cfg: Any) -> None:
    """Raise UserError where the method has nothing to choose by, or nothing to train."""
    if cfg.method.name == AUTO:
        if cfg.memory_budget_mb is None or cfg.blocks is not None:
            raise UserError("method=auto needs a memory_budget_mb to choose by, and chooses blocks itself")
    elif METHODS[cfg.method.name].needs_lite_residual and cfg.lite_residual.enabled is False:
        raise UserError(f"method={cfg.method.name} has nothing to train with lite_residual.enabled=false")


def _check_stream(cfg: Any) -> None:
    """Raise UserError for settings that a stream of images, or data without one, cannot have."""
    if cfg.data.stream and (cfg.epochs > 1 or cfg.batch_size > 1):
        raise UserError("data.stream=true sees each image once, one at a time: epochs=1 batch_size=1")
    if cfg.data.stream and cfg.trainer.devices > 1:
        raise UserError("data.stream=true sees one image at a time: trainer.devices=1")
    if cfg.classifier == "class_means" and (cfg.data.stream or cfg.data.task == "multilabel"):
        raise UserError(NO_CLASS_MEANS)
    if cfg.class_weights is not None and cfg.data.stream:
        raise UserError("class_weights=balanced: how frequent classes are in a stream is known at its end")
    if cfg.data.drift and not cfg.data.stream:
        raise UserError("data.drift=true is the order of a stream: data.stream=true")


def _check_table(cfg: Any) -> None:
    """Raise UserError for a CSV file that the data set's loader does not read."""
    if cfg.data.csv is not None and cfg.data.loader != TABLE_LOADER and not _is_foreign(cfg.data.loader):
        raise UserError(f"data.csv={cfg.data.csv}: data={cfg.data.name} reads no table; data=table does")


def _check_validation(cfg: Any) -> None:
    """Raise UserError for settings that need a validation set where there certainly is none."""
    may_have_own = cfg.data.loader in (FOLDER_LOADER, TABLE_LOADER) or _is_foreign(cfg.data.loader)
    for setting in settings_that_need_validation(cfg):
        if cfg.data.val_fraction == 0 and not may_have_own:
            raise UserError(NO_VALIDATION.format(setting))
        if cfg.trainer.limit_val_batches == 0:
            raise UserError(f"{setting} needs validation: trainer.limit_val_batches above 0")


def _is_foreign(loader: str) -> bool:
    """Whether a loader is none of this package, so that nothing is known of its data."""
    return not loader.startswith("tinytl.")


def check_budget(cfg: Any) -> None:
    """Raise UserError unless resolution and memory budget are numbers, or `auto` where that is possible."""
    for key in ("resolution", "memory_budget_mb"):
        number = isinstance(cfg[key], int | float) and not isinstance(cfg[key], bool)
        if not number and cfg[key] != "auto" and (key, cfg[key]) != ("memory_budget_mb", None):
            raise UserError(f"{key}={str(cfg[key])[:SHOWN]}: must be a number or auto")
    if isinstance(cfg.resolution, float):
        raise UserError(f"resolution={cfg.resolution}: must be a whole number of pixels")
    if cfg.resolution == "auto" and cfg.memory_budget_mb is None:
        raise UserError("resolution=auto needs a memory_budget_mb to fit into")


def settings_that_need_validation(cfg: Any) -> list[str]:
    """Return the settings that need a validation set, as on the command line."""
    patience = [] if cfg.patience is None else [f"patience={cfg.patience}"]
    return (["test_weights=best"] if cfg.test_weights == "best" else []) + patience


def check_pretraining(cfg: Any) -> None:
    """Raise UserError for settings that an adaptation by a teacher cannot have."""
    teacher, probe = OmegaConf.select(cfg, "teacher"), OmegaConf.select(cfg, "probe")
    if probe is not None and teacher is None:
        raise UserError("probe=...: compares with a teacher; teacher=... must be given")
    if probe is not None and not Path(probe).is_dir():
        raise UserError(f"probe={probe}: no such folder")
    for key in ("class_weights", "patience"):
        if teacher is not None and cfg[key] is not None:
            raise UserError(f"{key}={cfg[key]}: a network that learns from a teacher sees no classes")
    check_name(teacher, cfg.model.name, "bn_frozen")
    if teacher is not None and cfg.norm.name != "gn":
        raise UserError(f"norm={cfg.norm.name}: a teacher is adapted to norm=gn")


def _check_engine(cfg: Any) -> None:
    """Raise UserError where the engine's knobs do not go with each other, the norm or the Trainer."""
    plan = engine_plan(cfg)
    if plan.micro_batches(cfg.batch_size) > 1 and cfg.norm.name == "bn":
        raise UserError(
            f"engine.micro_batch={plan.micro_batch}: norm=bn takes its statistics from the whole batch; "
            f"norm=gn and norm=bn_frozen work on any part of it"
        )
    if cfg.engine.name == "lean" and cfg.engine.channels_last:
        raise UserError("engine=lean has a memory layout of its own: channels_last=true is for engine=stock")
    if cfg.engine.name == "stock" and (plan.optimizer_bits == 8 or plan.step_in_backward):
        raise UserError("engine=stock: optimizer_bits=8 and step_in_backward=true are the lean engine's")
    if plan.step_in_backward and (cfg.trainer.gradient_clip_val or cfg.trainer.precision in HALF):
        raise UserError(
            "engine.step_in_backward=true leaves no gradients to clip or to unscale; it does not go with "
            "trainer.gradient_clip_val or trainer.precision=16-mixed"
        )

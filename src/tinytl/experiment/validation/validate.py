"""Refuse a configuration that cannot work, before any work is done."""

import unicodedata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinytl.assembly import HALF
from tinytl.data.loading import FOLDER_LOADER, TABLE_LOADER, find_loader
from tinytl.data.splits import Splits
from tinytl.errors import UserError
from tinytl.experiment.asked import engine_plan
from tinytl.experiment.terminal.error_lines import one_line, unknown_key
from tinytl.experiment.terminal.suggestions import did_you_mean
from tinytl.experiment.validation import folder_names
from tinytl.experiment.validation.devices import check_devices
from tinytl.experiment.validation.numbers import check_numbers
from tinytl.experiment.validation.sizes import check_sizes
from tinytl.methods import AUTO, METHODS
from tinytl.networks import specialized
from tinytl.networks.architecture import check_model
from tinytl.networks.norms import NORM_NAMES
from tinytl.networks.quantize import QUANTIZERS
from tinytl.networks.spec import EMBEDDED
from tinytl.weights import checkpoints
from tinytl.weights.download import is_url
from tinytl.weights.named_weights import check_name
from tinytl.weights.specialized_files import net_config, of_data

NO_VALIDATION = "{} needs a validation set: data.val_fraction above 0"
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
NO_CLASS_MEANS = "classifier=class_means: images must have one class each, and be no stream"
LONGEST_PART = 255  # bytes; no file system takes a longer part of a path
SHOWN = 80  # characters of a value that a message repeats


def validate(cfg: Any) -> None:
    """Raise UserError naming the first setting that cannot work."""
    refuse_unknown_keys(cfg)
    missing = OmegaConf.missing_keys(cfg) - ({"data.root"} if cfg.dry_run else set())
    if cfg.data.get("csv") is None and cfg.data.get("loader") == TABLE_LOADER and not cfg.dry_run:
        missing.add("data.csv")
    if missing:
        raise UserError(f"{min(missing)}=... must be given")
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    for key, text in _texts(values):
        _check_text(key, text)
    for key, options in {**ONE_OF, "method.name": (*METHODS, AUTO)}.items():
        value = OmegaConf.select(cfg, key)
        if value not in options:
            names = ["null" if option is None else str(option) for option in options]
            hint = did_you_mean(str(value), names)
            raise UserError(f"{key}={value}: must be one of {', '.join(names)}{hint}")
    _check_names(cfg)
    _budget(cfg)
    check_numbers(cfg)
    check_devices(cfg)
    find_loader(cfg.data.loader)
    check_model(cfg.model.name)
    _combinations(cfg)
    _logger(cfg)
    _pretraining(cfg)
    check_sizes(cfg)


def validate_starting_weights(cfg: Any) -> None:
    """Raise UserError if a file of starting weights cannot be read. It is called before data are read.

    An adaptation starts from the weights of its teacher.
    """
    source, config = cfg.get("teacher") or cfg.checkpoint, None
    if cfg.model.name == specialized.MODEL:
        source = of_data(source, cfg.data.name)
        config = net_config(source)
    if source is None or source == EMBEDDED or is_url(source) or timm.is_model_pretrained(source):
        return
    checkpoints.read(source, cfg.model.name, config)


def validate_data(cfg: Any, splits: Splits) -> None:
    """Raise UserError if the settings do not fit the data."""
    source, classes = f"data={cfg.data.name}", len(splits.class_names)
    for part, images in (("training", splits.train), ("test", splits.test)):
        if len(images) == 0:
            raise UserError(f"{source}: the {part} set has no images")
    if cfg.data.task not in (splits.task, "auto"):
        labels = "several labels" if splits.task == "multilabel" else "one class"
        raise UserError(
            f"data.task={cfg.data.task}: the images have {labels} each; data.task={splits.task} fits them"
        )
    asked = cfg.data.num_classes
    if asked is not None and (asked < classes or (asked > classes and splits.task == "multilabel")):
        raise UserError(f"data.num_classes={asked}: the data has {classes} classes")
    if splits.task == "multiclass" and classes < 2:
        raise UserError(
            f"{source}: the images have one class only, {splits.class_names[0]}; a classifier needs two"
        )
    if splits.val is None and cfg.data.val_fraction == 0:
        for setting in _needing_validation(cfg):
            raise UserError(NO_VALIDATION.format(setting))
    if cfg.classifier == "class_means" and splits.task == "multilabel":
        raise UserError(NO_CLASS_MEANS)
    if cfg.data.drift and splits.train_labels is None:
        raise UserError("data.drift=true: the images have no single class to come and go")
    if splits.train_labels and not 0 <= min(splits.train_labels) <= max(splits.train_labels) < classes:
        raise UserError(f"{source}: a training label is not one of the {classes} classes")


def refuse_unknown_keys(cfg: Any) -> None:
    """Raise UserError for a key that the schema does not have; Hydra takes any with a leading `+`."""
    for key in _unknown_keys(cfg):
        raise UserError(unknown_key(key))


def _unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    schema = OmegaConf.get_type(node)
    if schema is None or not is_dataclass(schema):
        return
    known = {field.name for field in fields(schema)}
    for key in node:
        if not prefix and key == "hydra":  # Hydra checks its own keys
            continue
        if key not in known:
            yield f"{prefix}{key}"
            continue
        plain = not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)
        if plain and OmegaConf.is_dict(node[key]):
            yield from _unknown_keys(node[key], f"{prefix}{key}.")


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every text in the configuration."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, key)


def _check_text(key: str, text: str) -> None:
    shown = f"{key}={''.join(c if c.isprintable() else '?' for c in text[:SHOWN])}"
    if not text.strip():
        raise UserError(f"{shown}: must not be empty")
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise UserError(f"{shown}: is not UTF-8")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise UserError(f"{shown}: holds a control character, such as a line's end")
    parts = () if "://" in text else text.split("/")
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        raise UserError(f"{shown}...: is too long; file systems take {LONGEST_PART} bytes between slashes")


def _check_names(cfg: Any) -> None:
    for key in ("name", "sweep"):
        refusal = folder_names.refusal(cfg[key]) if cfg[key] is not None else None
        if refusal:
            raise UserError(f"{key}={cfg[key][:SHOWN]}: must be a plain folder name; {refusal}")
    for character in "/\\#?%:":
        if character in cfg.wandb.project:
            raise UserError(f"wandb.project={cfg.wandb.project[:SHOWN]}: W&B allows no {character} in it")


def _budget(cfg: Any) -> None:
    """Raise UserError unless resolution and memory budget are numbers, or `auto` where that is possible."""
    for key in ("resolution", "memory_budget_mb"):
        number = isinstance(cfg[key], int | float) and not isinstance(cfg[key], bool)
        if not number and cfg[key] != "auto" and (key, cfg[key]) != ("memory_budget_mb", None):
            raise UserError(f"{key}={str(cfg[key])[:SHOWN]}: must be a number or auto")
    if isinstance(cfg.resolution, float):
        raise UserError(f"resolution={cfg.resolution}: must be a whole number of pixels")
    if cfg.resolution == "auto" and cfg.memory_budget_mb is None:
        raise UserError("resolution=auto needs a memory_budget_mb to fit into")


def _combinations(cfg: Any) -> None:
    if cfg.method.name == AUTO:
        if cfg.memory_budget_mb is None or cfg.blocks is not None:
            raise UserError("method=auto needs a memory_budget_mb to choose by, and chooses blocks itself")
    elif METHODS[cfg.method.name].needs_lite_residual and cfg.lite_residual.enabled is False:
        raise UserError(f"method={cfg.method.name} has nothing to train with lite_residual.enabled=false")
    check_name(cfg.checkpoint, cfg.model.name, cfg.norm.name)
    _engine(cfg)
    if cfg.data.stream and (cfg.epochs > 1 or cfg.batch_size > 1):
        raise UserError("data.stream=true sees each image once, one at a time: epochs=1 batch_size=1")
    if cfg.classifier == "class_means" and (cfg.data.stream or cfg.data.task == "multilabel"):
        raise UserError(NO_CLASS_MEANS)
    if cfg.class_weights is not None and cfg.data.stream:
        raise UserError("class_weights=balanced: how frequent classes are in a stream is known at its end")
    if cfg.data.drift and not cfg.data.stream:
        raise UserError("data.drift=true is the order of a stream: data.stream=true")
    foreign = not cfg.data.loader.startswith("tinytl.")
    if cfg.data.csv is not None and cfg.data.loader != TABLE_LOADER and not foreign:
        raise UserError(f"data.csv={cfg.data.csv}: data={cfg.data.name} reads no table; data=table does")
    may_have_own = cfg.data.loader in (FOLDER_LOADER, TABLE_LOADER) or foreign
    for setting in _needing_validation(cfg):
        if cfg.data.val_fraction == 0 and not may_have_own:
            raise UserError(NO_VALIDATION.format(setting))
        if cfg.trainer.limit_val_batches == 0:
            raise UserError(f"{setting} needs validation: trainer.limit_val_batches above 0")


def _logger(cfg: Any) -> None:
    if cfg.logger == "tensorboard" and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise UserError("logger=tensorboard: the package is missing: pip install -e '.[tensorboard]'")


def _needing_validation(cfg: Any) -> list[str]:
    """Return the settings that need a validation set, as on the command line."""
    patience = [] if cfg.patience is None else [f"patience={cfg.patience}"]
    return (["test_weights=best"] if cfg.test_weights == "best" else []) + patience


def _pretraining(cfg: Any) -> None:
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


def _engine(cfg: Any) -> None:
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

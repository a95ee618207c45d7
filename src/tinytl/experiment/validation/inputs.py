"""Refuse starting weights that cannot be read, and data that do not fit the settings."""

from typing import Any

import timm

from tinytl.data.splits import Splits
from tinytl.errors import UserError
from tinytl.experiment.validation.combinations import (
    NO_CLASS_MEANS,
    NO_VALIDATION,
    settings_that_need_validation,
)
from tinytl.networks import specialized
from tinytl.networks.spec import EMBEDDED
from tinytl.weights import checkpoints
from tinytl.weights.download import is_url
from tinytl.weights.specialized_files import net_config, of_data


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
        for setting in settings_that_need_validation(cfg):
            raise UserError(NO_VALIDATION.format(setting))
    if cfg.classifier == "class_means" and splits.task == "multilabel":
        raise UserError(NO_CLASS_MEANS)
    if cfg.data.drift and splits.train_labels is None:
        raise UserError("data.drift=true: the images have no single class to come and go")
    if splits.train_labels and not 0 <= min(splits.train_labels) <= max(splits.train_labels) < classes:
        raise UserError(f"{source}: a training label is not one of the {classes} classes")

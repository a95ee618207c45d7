"""Decide which runs count as reproductions of the paper's tables: those with the paper's configuration."""

import re
from typing import Any

from tinytl.paper import tables as paper

EPOCHS = 50
# The paper's values of the settings that change results, by dotted key of the configuration.
VALUES = {
    "data.val_fraction": 0.0,
    "data.crop_scale_min": 0.22,
    "data.flip": True,
    "dropout": 0.2,
    "weight_decay": 0.0,
    "classifier_lr": None,
    "class_weights": None,
    "patience": None,
    "warmup": 0.0,
    "classifier": "random",
    "blocks": None,
    "data.stream": False,
    "trainer.precision": "32-true",
    "trainer.gradient_clip_val": None,
    "engine.optimizer_bits": 32,
    "lite_residual.kernel_size": 5,
    "lite_residual.groups": 2,
    "lite_residual.expansion": 1.0,
    "lite_residual.pooling": 2,
    "lite_residual.upsampling": "bilinear",
}
LIMITS = ("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.limit_test_batches")


def get(record: Any, key: str, default: Any = None) -> Any:
    """The value under a dotted key, or the default where the key is missing."""
    for part in key.split("."):
        if not isinstance(record, dict) or part not in record:
            return default
        record = record[part]
    return record


def departures(config: dict[str, Any]) -> list[str]:
    """The keys in which a run's configuration departs from the paper's recipe; none if it reproduces it.

    The learning rate, for instance, must be the paper's for the data set. A setting that the record does not
    have is no departure: the run is older than the setting, and what it did was the default of today.
    """
    keys = [key for key, value in VALUES.items() if get(config, key, value) != value]
    keys += [key for key in LIMITS if limited(config, key)]
    keys += [key for key, value in _values_of_data(config).items() if get(config, key, value) != value]
    if get(config, "epochs", 0) < EPOCHS:
        keys.append("epochs")
    if get(config, "checkpoint") is None:
        keys.append("checkpoint")
    if get(config, "method.name") != "full" and get(config, "quantize") == "off":
        keys.append("quantize")
    return keys


def limited(config: dict[str, Any], key: str) -> bool:
    """Whether the limit `key` let a run see only a part of its images."""
    limit = get(config, key, 1.0)
    return not isinstance(limit, float) or limit != 1.0  # 1 is one batch, 1.0 is all of them


def _values_of_data(config: dict[str, Any]) -> dict[str, Any]:
    """The paper's values for the data set. For CelebA the paper gives none, so ours is taken."""
    name = get(config, "data.name")
    if name not in paper.data_sets():
        return {"data.name": "of the paper"}
    # The images must be the data set's own: from the loader of this package that is named after it.
    loader = str(get(config, "data.loader"))
    named = re.fullmatch(rf"tinytl\.data\.(\w+[._])*{name}(\.load)?", loader)
    wanted_loader = {} if named else {"data.loader": f"that of data={name}"}
    recipe = paper.recipes().get(name)
    if recipe is None:
        return {**wanted_loader, "lr": get(config, "data.lr")}
    return {
        **wanted_loader,
        "lr": recipe.lr_batch1 if get(config, "batch_size") == 1 else recipe.lr_batch8,
        "label_smoothing": recipe.label_smoothing,
        "data.color_jitter": recipe.color_jitter,
    }

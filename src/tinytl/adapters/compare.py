"""Check that the record of an adapter can be right, and that the adapter belongs to a network."""

import math
from collections import Counter

from tinytl.errors import UserError
from tinytl.weights.own_checkpoints import OwnRecord


def check_classes(record: OwnRecord, folder: str) -> None:
    """Raise UserError where the names of the classes are not as many as the classes, or not different."""
    names, count = record.class_names, record.spec.num_classes
    if names is None:
        return
    if len(names) != count:
        raise UserError(f"{folder}: {len(names)} class names for a classifier of {count} classes")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder}: {times} classes are named {name}")


def check_transform(record: OwnRecord, channels: int, folder: str) -> None:
    """Raise UserError where mean, standard deviation, resolution or metrics cannot be right.

    `channels` is that of the network's images.
    """
    for name, values in (("mean", record.mean), ("std", record.std)):
        if values is not None and (len(values) != channels or not all(map(math.isfinite, values))):
            raise UserError(
                f"{folder}: {name}={values}: one finite number per channel is needed (channels: {channels})"
            )
    if record.std is not None and min(record.std) <= 0:
        raise UserError(f"{folder}: std={record.std}: a standard deviation is positive")
    if record.resolution is not None and record.resolution < 1:
        raise UserError(f"{folder}: resolution={record.resolution}: a number of pixels is needed")
    for name, value in (record.metrics or {}).items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise UserError(f"{folder}: the metric {name} is {value}")


def check_same_backbone(ours: OwnRecord, theirs: OwnRecord, folder: str) -> None:
    """Raise UserError where the adapter `theirs` was trained on other frozen weights than the network has."""
    if ours.frozen_sha256 != theirs.frozen_sha256:
        raise UserError(
            f"{folder}: trained on {theirs.spec.model} whose frozen weights have the SHA-256 "
            f"{theirs.frozen_sha256}; this network is {ours.spec.model} with {ours.frozen_sha256}"
        )


def check_same_config(ours: OwnRecord, theirs: OwnRecord, folder: str) -> None:
    """Raise UserError where the adapter `theirs` was trained in another way than the network is adapted."""
    for setting, here, there in (
        ("method", ours.method, theirs.method),
        ("norm", ours.spec.norm, theirs.spec.norm),
        ("quantize", ours.quantize, theirs.quantize),
        ("trained_blocks", ours.blocks, theirs.blocks),
        ("lite_residual", ours.spec.lite_residual, theirs.spec.lite_residual),
    ):
        if here != there:
            raise UserError(f"{folder}: trained with {setting}={there}; this network has {setting}={here}")

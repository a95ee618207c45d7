"""The record of an adapted network, before anything is known of its classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm

from tinytl.adapters.config import Config
from tinytl.adapters.image_channels import image_channels
from tinytl.networks.blocks import class_count, given_names
from tinytl.networks.lite_residual import LiteResidual
from tinytl.networks.spec import NetworkSpec
from tinytl.system.version import VERSION
from tinytl.weights.own_checkpoints import OwnRecord, frozen_sha256, trainable_state


def describe(network: Any, config: Config, rounding: bool = False) -> OwnRecord:
    """Return the record of a network that is ready; with `rounding`, as if it were rounded to 8 bits."""
    names = given_names(network)
    held = trainable_state(network, config.norm_name)
    timm_config = getattr(network, "pretrained_cfg", None) or {}
    size = timm_config.get("input_size")
    mean, std = (_of_channels(timm_config.get(key), image_channels(network)) for key in ("mean", "std"))
    return OwnRecord(
        _spec(network, config), config.method, config.quantize, config.trained_blocks,
        frozen_sha256=frozen_sha256(network, held, config.quantize if rounding else "off"),
        mean=mean, std=std,
        resolution=None if size is None else int(size[-1]),
        classifier=names.classifier, block_names=None if names.blocks is None else list(names.blocks),
        version=VERSION,
    )  # fmt: skip


def _of_channels(values: Sequence[float] | None, channels: int) -> list[float] | None:
    """Return timm's mean or standard deviation, unless it is that of images with other channels."""
    return list(values) if values is not None and len(values) == channels else None


def model_name(network: Any) -> str:
    """timm's name of the model; of another network, the name of its class."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    return name if name and timm.is_model(name) else type(network).__name__


def _spec(network: Any, config: Config) -> NetworkSpec:
    lite_residuals = sum(isinstance(module, LiteResidual) for module in network.modules())
    shape = config.new_lite_residual if lite_residuals else None
    if shape and shape.blocks is not None and lite_residuals > shape.blocks:
        shape = replace(shape, blocks=None)  # the network had them before
    model, tag = model_name(network), (getattr(network, "pretrained_cfg", None) or {}).get("tag")
    weights = f"{model}.{tag}" if tag and timm.is_model_pretrained(f"{model}.{tag}") else None
    return NetworkSpec(model, config.norm_name, class_count(network), shape, _dropout(network), weights)


def _dropout(network: Any) -> float:
    rate = getattr(network, "drop_rate", 0.0)
    return float(rate) if isinstance(rate, int | float) else 0.0

"""Adapt a network for training in little memory."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinytl.adapters.block_shapes import block_shapes
from tinytl.adapters.config import Config
from tinytl.adapters.describe import describe
from tinytl.adapters.optimizers import refuse_optimizers
from tinytl.adapters.state import STATE, Adapted, Network, is_adapted
from tinytl.engine import make_lean
from tinytl.engine.hooks import has_hooks
from tinytl.engine.stock import without_tensors
from tinytl.engine.stored_mode import keep_modes
from tinytl.errors import UserError
from tinytl.methods import METHODS, freeze, has_lite_residuals, set_train_mode
from tinytl.networks.blocks import class_layers, name_layers
from tinytl.networks.lean_mark import is_lean
from tinytl.networks.lite_residual import (
    LiteResidual,
    fit_statistics,
    insert_lite_residuals,
    is_pretrained,
)  # fmt: skip
from tinytl.networks.norms import WeightStandardizedConv2d, batch_norm_eps, standardize_weights
from tinytl.networks.quantize import quantize_frozen

log = logging.getLogger("tinytl")


def adapt(network: Network, config: Config | None = None, images: Tensor | None = None) -> Network:
    """Prepare a network for training by the method of `config`, in place, and return it.

    It adds lite residual modules, freezes what the method does not train, rounds that to 8 bits, and hands
    the network over to the lean engine. Afterwards `train()` and `eval()` leave frozen statistics alone. Lite
    residual modules beside BatchNorm with stored statistics take theirs from `images` (N, C, H, W),
    normalised as for training.

    Raises UserError where the network is adapted or lean already, where an optimizer holds its parameters,
    where layers have hooks, and where the configuration does not fit the network.
    """
    config = config or Config()
    refuse_unfit(network)
    make_ready(network, config, None if images is None else images.shape[1:])
    quantize_frozen(network, config.quantize)
    if config.norm == "frozen" and is_pretrained(network) is False:
        _fit_statistics(network, images)
    return convert(network, config)


def refuse_unfit(network: nn.Module) -> None:
    """Raise UserError for a network that cannot be adapted as it is now."""
    whole = type(network).__name__
    if is_adapted(network):
        raise UserError(f"{whole} is adapted already; tinytl.unload makes it plain again")
    converted = next((name for name, m in network.named_modules() if is_adapted(m) or is_lean(m)), None)
    if converted is not None:
        raise UserError(f"{converted or whole} is adapted or lean already; begin with a plain network")
    hooked = next((name for name, module in network.named_modules() if has_hooks(module)), None)
    if hooked is not None:
        raise UserError(f"{hooked or whole} has hooks; register them after tinytl.adapt")
    refuse_optimizers(network)


def make_ready(network: Any, config: Config, size: Sequence[int] | None = None) -> None:
    """Name the layers, add lite residual modules, and freeze; `size` is that of the images (C, H, W)."""
    name_layers(network, _classifier_name(network, config), config.blocks)
    class_layers(network)  # refuses a network without a classifier
    _check_norm(network, config)
    if not has_lite_residuals(network):
        _add_lite_residuals(network, config, size)
    freeze(network, config.method, config.trained_blocks)


def convert(network: Network, config: Config) -> Network:
    """Hand a network that is ready over to the engine, and note what was done."""
    record = describe(network, config)
    set_train_mode(network, config.norm_name)
    stock = without_tensors(network)
    for plain in (stock, *([] if config.lean else [network])):
        keep_modes(plain)
    if config.lean:
        make_lean(network, config.plan)
    names = replace(config, classifier=record.classifier)
    setattr(network, STATE, Adapted(names, {"default": record}, "default", stock))
    return network


def _classifier_name(network: nn.Module, config: Config) -> str | None:
    """The name of the layer that gives the classes; None: timm tells it."""
    if not isinstance(config.classifier, nn.Module):
        return config.classifier
    name = next((n for n, module in network.named_modules() if n and module is config.classifier), None)
    if name is None:
        raise UserError(f"classifier: the module given is not in {type(network).__name__}")
    return name


def _check_norm(network: nn.Module, config: Config) -> None:
    """Raise UserError where the network has no norm layers of the kind that the configuration names."""
    name, has_batch_norm = type(network).__name__, batch_norm_eps(network) is not None
    if config.norm == "group" and has_batch_norm:
        raise UserError(
            f"norm=group: {name} has BatchNorm; src/pretrain.py turns its weights into those of a network "
            f"with GroupNorm, or norm='frozen' keeps them"
        )
    if config.norm == "group" and not any(isinstance(m, nn.GroupNorm) for m in network.modules()):
        raise UserError(f"norm=group: {name} has no GroupNorm; norm='native' keeps its own layers")
    if config.norm in ("frozen", "batch") and not has_batch_norm:
        raise UserError(f"norm={config.norm}: {name} has no BatchNorm; norm='native' keeps its own layers")


def _add_lite_residuals(network: nn.Module, config: Config, size: Sequence[int] | None) -> None:
    """Add lite residual modules where the method or the configuration asks for them."""
    needed = METHODS[config.method].needs_lite_residual
    if config.lite_residual is None and not needed:
        return
    if not needed and config.method != "full":
        raise UserError(f"lite_residual: method={config.method} does not train lite residual modules")
    standardizes = any(isinstance(m, WeightStandardizedConv2d) for m in network.modules())
    shapes = None if config.blocks is None else block_shapes(network, config.blocks, size)
    eps = batch_norm_eps(network) or 1e-5
    if not insert_lite_residuals(network, config.new_lite_residual, config.norm_name, eps, shapes):
        raise UserError(
            f"method={config.method}: {type(network).__name__} has no blocks of timm to which lite residual "
            f"modules can be added; name its blocks in Config(blocks=...), or take another method"
        )
    for module in network.modules():
        if standardizes and isinstance(module, LiteResidual):
            standardize_weights(module)


def _fit_statistics(network: nn.Module, images: Tensor | None) -> None:
    """Take the stored statistics of new lite residual modules from images; without any, warn."""
    if images is None:
        log.warning(
            "lite residual modules use mean 0 and variance 1 as their stored statistics; "
            "adapt(network, config, images=...) takes them from images"
        )
        return
    parameter = next(network.parameters())
    with torch.no_grad():
        fit_statistics(network, images.to(parameter))

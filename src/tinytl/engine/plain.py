"""The way back from a lean network: the same network of stock PyTorch's and timm's modules."""

from typing import Any

from torch import nn

from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.mixin import Mixin, restore_class
from tinytl.engine.report import forget_report
from tinytl.engine.stock import stock_of
from tinytl.errors import UserError
from tinytl.networks.lean_mark import is_lean

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def make_plain(network: Any) -> Any:
    """Turn a network that `make_lean` has converted back into stock modules, in place; return it.

    The tensors that train are the same objects, and so are buffers. Frozen weights are in floating point
    again: the values that their 8-bit codes stand for. `make_lean` finds the same codes in them. Norms with
    stored statistics are in evaluation mode, which `train()` now changes.

    Raises UserError for a network that is not lean.
    """
    if not is_lean(network):
        raise UserError("make_plain: the network is not lean")
    forget_report(network)
    _restore_inside(network, {})
    return network


def _restore_inside(parent: nn.Module, restored: dict[nn.Module, nn.Module]) -> None:
    """Replace the lean layers in `parent`; `restored` maps each to what replaced it, wherever it is used."""
    if isinstance(parent, Mixin):
        restore_class(parent)
    for name, child in parent._modules.items():
        if child is None:
            continue
        if stock_of(child) is None:
            _restore_inside(child, restored)
            continue
        if child not in restored:
            restored[child] = _filled(stock_of(child), child)
        parent._modules[name] = restored[child]


def _filled(stock: nn.Module, layer: nn.Module) -> nn.Module:
    """The stock module with the tensors, the mode and the hooks of the lean layer."""
    layers = dict(layer.named_modules(remove_duplicate=False))
    for name, module in stock.named_modules(remove_duplicate=False):
        source = layers.get(name)
        module.training = layer.training if source is None else source.training
        if source is None:
            continue
        for hooks in HOOKS:
            getattr(module, hooks).update(getattr(source, hooks))
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = _plain_parameter(source, key)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = source._buffers[key]
    return stock


def _plain_parameter(layer: nn.Module, name: str) -> nn.Parameter | None:
    if name == "weight" and isinstance(layer, FrozenWeight):
        return layer.plain_parameter()
    return layer._parameters[name]

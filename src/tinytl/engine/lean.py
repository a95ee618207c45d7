"""Make a network lean: the same outputs and gradients, with less kept for the backward pass."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tinytl.engine.bottleneck import SlicedBottleneck
from tinytl.engine.clamp import LeanClamp
from tinytl.engine.compiled_kernels import choose_kernels
from tinytl.engine.ends import fuse_ends
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.frozen_layers import FrozenConv2d, FrozenLinear
from tinytl.engine.hooks import has_hooks
from tinytl.engine.kept import kept_tensors
from tinytl.engine.kernels import Kernels
from tinytl.engine.lean_network import Lean
from tinytl.engine.mixin import become
from tinytl.engine.native.block import NativeLiteResidualBlock
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.head import NativeHead
from tinytl.engine.native.lite_residual import NativeLiteResidual
from tinytl.engine.norms import LeanGroupNorm, StoredBatchNorm
from tinytl.engine.plan import EnginePlan
from tinytl.engine.recompute import recompute_in_backward
from tinytl.engine.report import LeanReport, set_report
from tinytl.engine.standardized import StandardizedConv2d
from tinytl.engine.stock import replace_by_lean
from tinytl.engine.stored_mode import keep_modes
from tinytl.errors import UserError
from tinytl.networks.blocks import block_names
from tinytl.networks.lean_mark import is_lean
from tinytl.networks.lite_residual import LiteResidualBlock

log = logging.getLogger(__name__)

# The first whose `of` returns a layer replaces a module. Layers for whole blocks come before those for parts
# of them, and faster ones before slower ones.
LAYERS: tuple[Any, ...] = (
    NativeLiteResidualBlock,
    NativeBottleneck,
    NativeLiteResidual,
    SlicedBottleneck,
    FrozenConv2d,
    StandardizedConv2d,
    FrozenLinear,
    StoredBatchNorm,
    LeanGroupNorm,
    LeanClamp,
)
RECOMPUTE_BY_THEMSELVES = (
    NativeLiteResidualBlock, NativeBottleneck, NativeLiteResidual, SlicedBottleneck,
)  # fmt: skip
# What a loop or an optimizer of one's own must do by itself.
NOT_OF_THE_NETWORK = ("micro_batch", "optimizer_bits", "step_in_backward")


def make_lean(network: Any, plan: EnginePlan) -> Any:
    """Convert a CNN in place, after `freeze` and `set_train_mode`; return it.

    Parameters and buffers keep their names, and `state_dict` their values and shapes, so that checkpoints fit
    either engine. Frozen weights cannot be trained afterwards: they become 8-bit codes where their values
    allow it. `make_plain` is the way back. What was done is logged in one line, and `lean_report` returns it.
    Where the end of the network is native, the maps that `forward_features` returns are averaged to one pixel
    already.

    Raises UserError for a network that is lean already, and where a module has hooks, because fused layers
    would not call them.
    """
    if is_lean(network):
        raise UserError("engine=lean: the network is lean already; build it anew for another plan")
    _refuse_hooks(network)
    blocks = block_names(network, (nn.Conv2d, nn.Linear))
    conversion = _Conversion(plan, choose_kernels(plan.compile))
    if plan.lean_layers or (plan.lean_layers is None and not _is_on_gpu(network)):
        conversion.replace_inside(network, "")
    keep_modes(network)
    report = _recompute(network, blocks, plan, conversion)
    set_report(network, report)
    become(network, Lean)
    if not any(tensor.is_meta for tensor in _tensors(network)):
        log.info("%s", report)
    return network


def _refuse_hooks(network: nn.Module) -> None:
    """Raise UserError where a module of the network has hooks."""
    for name, module in network.named_modules():
        if has_hooks(module):
            raise UserError(f"engine=lean: {name or 'the network'} has hooks; register them after make_lean")


@dataclass
class _Conversion:
    """The traversal, and what it replaced."""

    plan: EnginePlan
    kernels: Kernels
    layers: dict[nn.Module, nn.Module] = field(default_factory=dict)  # the module -> what replaced it
    replaced: Counter[str] = field(default_factory=Counter)
    native: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)

    def replace_inside(self, parent: nn.Module, prefix: str) -> None:
        """Replace the modules in `parent`, from the top, and go into those that stay."""
        for fused in fuse_ends(parent, self.plan, self.kernels):
            self._note(fused.layer, prefix + fused.name)
        for name, child in list(parent._modules.items()):
            if child is None or isinstance(child, (*LAYERS, NativeHead, FrozenWeight)):
                continue
            layer = self._lean(child, prefix + name)
            if layer is None:
                self.replace_inside(child, f"{prefix}{name}.")
            else:
                replace_by_lean(parent, name, layer)

    def _lean(self, module: nn.Module, name: str) -> nn.Module | None:
        """The lean layer for a module; the same one wherever the module is used again."""
        if module not in self.layers:
            for kind in LAYERS:
                layer = kind.of(module, self.plan, self.kernels)
                if layer is not None:
                    self.layers[module] = layer
                    self._note(layer, name)
                    break
        return self.layers.get(module)

    def _note(self, layer: nn.Module, name: str) -> None:
        """Count a lean layer, and name the block that it computes."""
        self.replaced[type(layer).__name__] += 1
        if isinstance(layer, NativeBottleneck | NativeLiteResidualBlock):
            self.native.append(name)
        if isinstance(layer, SlicedBottleneck):
            self.sliced.append(name)


def _recompute(
    network: nn.Module, blocks: list[str], plan: EnginePlan, conversion: _Conversion
) -> LeanReport:
    """Recompute the blocks that keep less for it, and report the conversion."""
    candidates = [] if plan.recompute_above_px is None else list(_candidates(network, blocks))
    only_predicted = any(tensor.is_meta for tensor in _tensors(network))
    kept = None if only_predicted and not candidates else kept_tensors(network, candidates)
    chosen = candidates if kept is None else kept.recomputed()
    report = LeanReport(
        replaced=dict(conversion.replaced),
        native=tuple(conversion.native),
        sliced=tuple(conversion.sliced),
        recomputed=tuple(chosen),
        kept_as_they_were=tuple(name for name in candidates if name not in chosen),
        kept_mb_an_image=kept and kept.mb_an_image(chosen),
        input_size=kept and kept.input_size,
        for_your_loop=_for_your_loop(plan),
    )
    for name in chosen:
        recompute_in_backward(network.get_submodule(name), plan.recompute_above_px or 0)
    return report


def _candidates(network: nn.Module, blocks: list[str]) -> Iterator[str]:
    """Yield the names of the blocks that may be recomputed; of a block with a lite residual, each branch.

    So only one of its branches is recomputed at a time.
    """
    for name in blocks:
        block = network.get_submodule(name)
        if isinstance(block, LiteResidualBlock):
            yield from _candidates(network, [f"{name}.main_branch", f"{name}.lite_residual"])
        elif not isinstance(block, RECOMPUTE_BY_THEMSELVES):
            yield name


def _for_your_loop(plan: EnginePlan) -> tuple[str, ...]:
    """The plan's settings other than the defaults that only a loop or an optimizer can apply."""
    default = EnginePlan()
    values = {name: getattr(plan, name) for name in NOT_OF_THE_NETWORK}
    return tuple(f"{name}={value}" for name, value in values.items() if value != getattr(default, name))


def _is_on_gpu(network: nn.Module) -> bool:
    return any(tensor.device.type not in ("cpu", "meta") for tensor in _tensors(network))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()

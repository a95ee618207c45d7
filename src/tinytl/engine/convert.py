"""Make a network lean: the same outputs and gradients, with less kept for the backward pass."""

from typing import Any

from timm.layers import Conv2dSame
from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.engine.bottleneck import SlicedBottleneck, has_hooks
from tinytl.engine.kernels import LINEAR, Clamp, Kernels, choose_kernels
from tinytl.engine.operators import FrozenConv2d, FrozenLinear, lean_clamp, lean_norm, lean_standardization
from tinytl.engine.plan import EnginePlan
from tinytl.engine.recompute import recompute_in_backward
from tinytl.errors import UserError
from tinytl.networks.blocks import INVERTED, block_names, convolutions
from tinytl.networks.lite_residual import LiteResidualBlock
from tinytl.networks.norms import WeightStandardizedConv2d

CLAMPS = {nn.ReLU: Clamp(0.0, float("inf")), nn.ReLU6: Clamp(0.0, 6.0), nn.Identity: LINEAR}


def make_lean(network: Any, plan: EnginePlan) -> Any:
    """Convert a timm CNN in place, after `freeze` and `set_train_mode`; return it.

    Trainable parameters keep their names and values, so that checkpoints fit either engine. Frozen
    weights cannot be trained afterwards: they become 8-bit codes where their values allow it. Raises
    UserError where a module has hooks, because fused layers would not call them.
    """
    _refuse_hooks(network)
    kernels = choose_kernels(plan.compile)
    blocks = block_names(network)
    _fuse_stem(network, plan, kernels)
    _slice_bottlenecks(network, plan, kernels)
    _replace_frozen(network, plan, kernels)
    _lean_layers(network, kernels)
    if plan.recompute_above_px is not None:
        for name in blocks:
            _recompute(network.get_submodule(name), plan.recompute_above_px)
    return network


def _refuse_hooks(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if has_hooks(module):
            raise UserError(f"engine=lean: {name or 'the network'} has hooks; register them after make_lean")


def _slice_bottlenecks(network: nn.Module, plan: EnginePlan, kernels: Kernels) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, INVERTED) and _sliceable(child):
                setattr(parent, name, _sliced(*_parts(child), child.has_skip, plan, kernels))


def _fuse_stem(network: Any, plan: EnginePlan, kernels: Kernels) -> None:
    """Replace the stem and the depthwise separable block after it by one sliced bottleneck.

    The network's largest maps lie between the two; in slices they are never whole.
    """
    conv, norm = getattr(network, "conv_stem", None), getattr(network, "bn1", nn.Identity())
    stages = getattr(network, "blocks", [])
    first = stages[0][0] if len(stages) and isinstance(stages[0], nn.Sequential) else None
    if not isinstance(first, DepthwiseSeparableConv) or first.has_skip or not _sliceable(first):
        return
    if not (_is_frozen_plain(conv) and _is_square(conv) and _is_clamped_norm(norm)):
        return
    convs, norms = _parts(first)
    network.blocks[0][0] = _sliced([conv, *convs], {"outside": norm, **norms}, False, plan, kernels)
    network.conv_stem = nn.Identity()
    norm.forward = lambda input: input  # its parameters keep their names here; the block applies them


def _parts(block: Any) -> tuple[list[Any], dict[str, Any]]:
    """The convolutions ([expansion], depthwise, projection) and, by name, the norms after them."""
    convs = convolutions(block)
    return convs, {f"bn{i}": getattr(block, f"bn{i}") for i in range(1, len(convs) + 1)}


def _sliceable(block: Any) -> bool:
    """Whether a block holds plain frozen convolutions, a clamped norm after each, and nothing else."""
    if type(block) not in INVERTED:  # nor one derived from them: it may compute something else
        return False
    convs, norms = _parts(block)
    extras = [getattr(block, name, None) for name in ("conv_s2d", "aa", "se", "dw_tfm", "drop_path")]
    pointwise = [conv for conv in convs if conv is not block.conv_dw]
    return (
        all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
        and all(_is_frozen_plain(conv) for conv in convs)
        and all(_is_clamped_norm(norm) for norm in norms.values())
        and type(list(norms.values())[-1].act) is nn.Identity
        and all(_is_square(conv) for conv in convs)
        and all(conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 for conv in pointwise)
        and block.conv_dw.groups == block.conv_dw.in_channels == block.conv_dw.out_channels
    )


def _is_square(conv: Any) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.padding)
    return conv.dilation == (1, 1) and all(len({*size}) == 1 for size in sizes)


def _is_frozen_plain(conv: Any) -> bool:
    return (
        type(conv) in (nn.Conv2d, WeightStandardizedConv2d)
        and conv.bias is None
        and not conv.weight.requires_grad
        and not getattr(conv, "same", False)
    )


def _is_lean_norm(norm: Any) -> bool:
    """Whether it is a GroupNorm, or a BatchNorm that uses stored statistics, with scale and shift."""
    stored = isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None
    return (stored or isinstance(norm, nn.GroupNorm)) and norm.weight is not None


def _is_clamped_norm(norm: Any) -> bool:
    """Whether it is a lean norm whose built-in activation is a clamp or none."""
    act, drop = getattr(norm, "act", nn.Identity()), getattr(norm, "drop", nn.Identity())
    return _is_lean_norm(norm) and type(act) in CLAMPS and isinstance(drop, nn.Identity)


def _sliced(
    convs: list[Any], norms: dict[str, Any], has_skip: bool, plan: EnginePlan, kernels: Kernels
) -> SlicedBottleneck:
    acts = [CLAMPS[type(norm.act)] for norm in norms.values()]
    expand = convs[-3] if len(convs) == 3 else None
    return SlicedBottleneck(expand, convs[-2], convs[-1], norms, acts[:-1], has_skip, kernels, plan)


def _replace_frozen(network: nn.Module, plan: EnginePlan, kernels: Kernels) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Conv2d | nn.Linear) or child.weight.requires_grad:
                continue
            if type(child) in (nn.Conv2d, Conv2dSame, WeightStandardizedConv2d):
                same = isinstance(child, Conv2dSame) or getattr(child, "same", False)
                setattr(parent, name, FrozenConv2d(child, same, kernels, plan.slice_bytes))
            elif type(child) is nn.Linear:
                setattr(parent, name, FrozenLinear(child, kernels))


def _lean_layers(network: nn.Module, kernels: Kernels) -> None:
    for module in network.modules():
        if isinstance(module, SlicedBottleneck):
            continue
        if _is_clamped_norm(module) and "forward" not in vars(module):
            lean_norm(module, CLAMPS[type(getattr(module, "act", nn.Identity()))], kernels)
        elif type(module) in (nn.ReLU, nn.ReLU6):
            lean_clamp(module, CLAMPS[type(module)])
        elif isinstance(module, WeightStandardizedConv2d):
            lean_standardization(module, kernels)


def _recompute(block: nn.Module, above_px: int) -> None:
    if isinstance(block, LiteResidualBlock):  # each branch alone, so that only one is recomputed at a time
        _recompute(block.main_branch, above_px)
        _recompute(block.lite_residual, above_px)
    elif not isinstance(block, SlicedBottleneck) and not _draws_random_numbers(block):
        recompute_in_backward(block, above_px)


def _draws_random_numbers(block: nn.Module) -> bool:
    drops = [module for module in block.modules() if "Drop" in type(module).__name__]
    return any(getattr(drop, "p", 0) or getattr(drop, "drop_prob", 0) for drop in drops)

"""The blocks of a timm model: which types they have, and where they are in a network."""

from typing import Any

from timm.models import group_parameters
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from tinytl.errors import UserError

EXPANDED = (InvertedResidual,)  # inverted bottlenecks: expansion, depthwise convolution, projection
INVERTED = (*EXPANDED, DepthwiseSeparableConv)  # those without an expansion, too
RESIDUAL = (BasicBlock, Bottleneck)  # of ResNets


# The layers of an inverted bottleneck by what they do: names of its convolution and of the norm after it,
# in the order in which they are applied.
LAYERS_OF_EXPANDED = {
    "expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3"),
}  # fmt: skip
LAYERS_OF_DEPTHWISE_SEPARABLE = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
# What such a block may hold besides; where it holds none of them, these are missing or nn.Identity.
EXTRAS = ("conv_s2d", "aa", "se", "dw_tfm")


def layer_names(block: nn.Module) -> dict[str, tuple[str, str]]:
    """The names of a bottleneck's convolutions and norms, by what they do: expand, depthwise, project."""
    return LAYERS_OF_EXPANDED if isinstance(block, EXPANDED) else LAYERS_OF_DEPTHWISE_SEPARABLE


def convolutions(block: Any) -> list[Any]:
    """The convolutions of a block of these types, in the order in which they are applied."""
    if isinstance(block, INVERTED):
        return [getattr(block, conv) for conv, _ in layer_names(block).values()]
    return [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]


def has_shortcut(module: nn.Module) -> bool:
    """Whether a module holds its input until its end, to add it to its output."""
    return isinstance(module, RESIDUAL) or bool(getattr(module, "has_skip", False))


def block_names(network: Any, layers: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> list[str]:
    """Names of the network's blocks that have several layers of these types, in order from the input.

    timm's `group_matcher` tells which parameters belong to one block; a model without it has no blocks here.
    """
    if not hasattr(network, "group_matcher"):
        return []
    groups = group_parameters(network, network.group_matcher(coarse=False))
    group_of = {parameter: group for group, parameters in groups.items() for parameter in parameters}
    names: list[str] = []
    for name, module in network.named_modules():
        inside = name.startswith(tuple(f"{outer}." for outer in names))
        if inside or module is network or isinstance(module, nn.Sequential):
            continue
        count = sum(isinstance(m, layers) for m in module.modules())
        # a parameter that is shared is in the group of its first name
        owners = {group_of.get(f"{name}.{p}") for p, _ in module.named_parameters()}
        if count > 1 and len(owners) == 1:
            names.append(name)
    return names


def before_last_blocks(network: Any, count: int) -> list[str]:
    """Names of the parameters before the last `count` blocks; with 0, of all but those after the last block.

    Raises UserError where the network has fewer blocks.
    """
    blocks, names = block_names(network), [name for name, _ in network.named_parameters()]
    if count > len(blocks) or not blocks:
        raise UserError(f"blocks={count}: the network has {len(blocks)}")
    kept = tuple(f"{block}." for block in blocks[len(blocks) - count :])
    inside = [i for i, name in enumerate(names) if name.startswith(kept)] if kept else []
    last = max(i for i, name in enumerate(names) if name.startswith(tuple(f"{b}." for b in blocks)))
    return names[: min(inside, default=last + 1)]


def classifiers(network: Any) -> list[nn.Module]:
    """The classifiers of a timm model: one, or several that each see the features; none if it has none.

    Raises UserError for a network that does not know its classifier.
    """
    if not hasattr(network, "get_classifier"):
        raise UserError(f"{type(network).__name__} has no get_classifier(), which returns the last layer")
    found = network.get_classifier()
    heads = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    return [
        head for head in heads if isinstance(head, nn.Module) and next(head.parameters(), None) is not None
    ]


def silence_residual_branches(network: nn.Module) -> None:
    """Set the last norm's scale to 0 in every inverted bottleneck with a shortcut.

    The network then begins shallow. From random weights a deep one hardly learns at first (Goyal et al.,
    arXiv 1706.02677, section 5.1). timm does the same for its ResNets.
    """
    for block in network.modules():
        if isinstance(block, EXPANDED) and block.has_skip:
            nn.init.zeros_(block.bn3.weight)  # type: ignore[arg-type]

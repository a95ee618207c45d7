"""The blocks and the classifier of a network: which types they have, and where they are.

timm's models tell both. A network of one's own tells them by `name_layers`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
NAMES = "tinytl_layer_names"  # attribute of a network that holds its LayerNames


def layer_names(block: nn.Module) -> dict[str, tuple[str, str]]:
    """The names of a bottleneck's convolutions and norms, by what they do: expand, depthwise, project."""
    return LAYERS_OF_EXPANDED if isinstance(block, EXPANDED) else LAYERS_OF_DEPTHWISE_SEPARABLE


def convolutions(block: Any) -> list[Any]:
    """The convolutions of a block of these types, in the order in which they are applied."""
    if isinstance(block, INVERTED):
        return [getattr(block, conv) for conv, _ in layer_names(block).values()]
    return [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]


@dataclass(frozen=True)
class LayerNames:
    """Names of a network's layers, where they are not to be taken from timm (None)."""

    classifier: str | None = None
    blocks: tuple[str, ...] | None = None


def name_layers(network: nn.Module, classifier: str | None, blocks: Sequence[str] | None) -> None:
    """Note which layer gives the classes, and which modules are blocks.

    Raises UserError for a name that the network does not have, and for a block inside of another one.
    """
    modules = dict(network.named_modules())
    for setting, name in (("classifier", classifier), *(("blocks", block) for block in blocks or ())):
        if name is not None and (not name or name not in modules):
            raise UserError(f"{setting}={name}: {type(network).__name__} has no module of that name")
    for block in blocks or ():
        outer = next((other for other in blocks or () if block.startswith(f"{other}.")), None)
        if outer is not None:
            raise UserError(f"blocks={block}: it is inside of the block {outer}")
    in_order = None if blocks is None else tuple(name for name in modules if name in set(blocks))
    setattr(network, NAMES, LayerNames(classifier, in_order))


def given_names(network: nn.Module) -> LayerNames:
    """The names that `name_layers` has noted."""
    return getattr(network, NAMES, LayerNames())


def has_shortcut(module: nn.Module) -> bool:
    """Whether a module holds its input until its end, to add it to its output."""
    return isinstance(module, RESIDUAL) or bool(getattr(module, "has_skip", False))


def block_names(network: Any, layers: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> list[str]:
    """Names of the network's blocks that have several layers of these types, in order from the input.

    timm's `group_matcher` tells which parameters belong to one block; a model without it has no blocks here.
    Blocks that `name_layers` has named are the blocks, whatever they consist of.
    """
    if (named := given_names(network).blocks) is not None:
        return list(named)
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
        # A parameter that is shared is in the group of its first name.
        groups_inside = {group_of.get(f"{name}.{p}") for p, _ in module.named_parameters()}
        if count > 1 and len(groups_inside) == 1:
            names.append(name)
    return names


def last_block_names(network: Any, count: int) -> list[str]:
    """Names of the last `count` blocks. Raises UserError where the network has fewer."""
    blocks = block_names(network)
    if count > len(blocks) or not blocks:
        raise UserError(f"blocks={count}: the network has {len(blocks)}")
    return blocks[len(blocks) - count :]


def before_last_blocks(network: Any, count: int) -> list[str]:
    """Names of the parameters before the last `count` blocks; with 0, of all but those after the last block.

    Raises UserError where the network has fewer blocks.
    """
    names = [name for name, _ in network.named_parameters()]
    last_blocks = tuple(f"{block}." for block in last_block_names(network, count))
    in_last_blocks = [i for i, name in enumerate(names) if name.startswith(last_blocks)]
    if in_last_blocks:
        return names[: in_last_blocks[0]]
    blocks = tuple(f"{block}." for block in block_names(network))
    in_blocks = [i for i, name in enumerate(names) if name.startswith(blocks)]
    return names[: in_blocks[-1] + 1]


def classifiers(network: Any) -> list[nn.Module]:
    """The classifiers of a network: one, or several that each see the features; none if it has none.

    `name_layers` or timm's `get_classifier` tells them. Raises UserError where neither does.
    """
    named = given_names(network).classifier
    if named is None and not hasattr(network, "get_classifier"):
        raise UserError(
            f"{type(network).__name__} has no get_classifier(), which returns the layer that gives the "
            f"classes; name it: Config(classifier=...){_last_layer(network)}"
        )
    found = network.get_classifier() if named is None else network.get_submodule(named)
    heads = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    return [
        head for head in heads if isinstance(head, nn.Module) and next(head.parameters(), None) is not None
    ]


def classifier_parameters(network: Any) -> Iterator[nn.Parameter]:
    """The parameters of the classifiers. Raises UserError as `classifiers` does."""
    for head in classifiers(network):
        yield from head.parameters()


def _last_layer(network: nn.Module) -> str:
    """The name of the last linear layer, in words for an error."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return f", for example classifier={linear[-1]!r}" if linear else ""


def class_layers(network: Any) -> list[nn.Linear | nn.Conv2d]:
    """The layer that gives the classes, in each of the classifiers.

    Raises UserError where there is no classifier, or where one has no linear layer or convolution.
    """
    layers = []
    for head in classifiers(network):
        inside = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if not inside:
            raise UserError(f"the classifier of {type(network).__name__} has no linear layer or convolution")
        layers.append(inside[-1])
    if not layers:
        raise UserError(f"{type(network).__name__} has no classifier; give it one for your classes first")
    return layers


def class_count(network: Any) -> int:
    """The number of classes. Raises UserError where no layer gives them."""
    return len(class_layers(network)[0].weight)


def set_class_count(network: Any, count: int) -> None:
    """Give the classifiers this many outputs, in place: parameters of zeros where their number changes."""
    for layer in class_layers(network):
        if len(layer.weight) == count:
            continue
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.new_zeros(count, *parameter.shape[1:])
            parameter.grad = None
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", count)
    if hasattr(network, "num_classes"):
        network.num_classes = count


def silence_residual_branches(network: nn.Module) -> None:
    """Set the last norm's scale to 0 in every inverted bottleneck with a shortcut.

    The network then begins shallow. From random weights a deep one hardly learns at first (Goyal et al.,
    arXiv 1706.02677, section 5.1). timm does the same for its ResNets.
    """
    for block in network.modules():
        if isinstance(block, EXPANDED) and block.has_skip:
            nn.init.zeros_(block.bn3.weight)  # type: ignore[arg-type]

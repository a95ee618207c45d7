"""The ends of a network: the stem and the first block as one bottleneck; head, norm and pooling as one layer.

The network's largest maps lie between its stem and its first block. In one bottleneck they are never whole in
memory.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from tinytl.engine.bottleneck import SlicedBottleneck
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.kernels import Kernels
from tinytl.engine.mixin import Mixin, become
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.head import NativeHead
from tinytl.engine.plan import EnginePlan
from tinytl.engine.stock import replace_by_lean


class Fused(NamedTuple):
    """The layer that computes several of the network's, and its name there."""

    layer: nn.Module
    name: str


class AppliedElsewhere(Mixin):
    """A layer whose parameters keep their names here, while another layer applies it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input as it is."""
        return input


def fuse_ends(network: Any, plan: EnginePlan, kernels: Kernels) -> list[Fused]:
    """Replace the layers at a network's ends where one lean layer can compute them."""
    ends = (_fuse_stem(network, plan, kernels), _fuse_head(network, plan, kernels))
    return [fused for fused in ends if fused is not None]


def _fuse_stem(network: Any, plan: EnginePlan, kernels: Kernels) -> Fused | None:
    parts = BottleneckParts.of_stem(network, plan, kernels)
    if parts is None:
        return None
    layer = NativeBottleneck.of_parts(parts, plan, kernels) or SlicedBottleneck.of_parts(parts, plan, kernels)
    if layer is None:
        return None
    stem, norm = layer.parts[0]
    replacements = {"conv_stem": stem, "bn1": norm}
    for name, replacement in replacements.items():
        replace_by_lean(network, name, replacement)
        become(replacement, AppliedElsewhere)
    replace_by_lean(network.blocks[0], "0", layer)
    return Fused(layer, "blocks.0.0")


def _fuse_head(network: Any, plan: EnginePlan, kernels: Kernels) -> Fused | None:
    layer = NativeHead.of_network(network, plan, kernels)
    if layer is None:
        return None
    replace_by_lean(network, "conv_head", layer)
    (norm,) = layer.outside
    replace_by_lean(network, "bn2", norm)
    become(norm, AppliedElsewhere)
    return Fused(layer, "conv_head")

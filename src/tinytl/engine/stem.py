"""The stem and the first block of a network as one bottleneck.

The network's largest maps lie between the two; in slices they are never whole.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.kernels import Kernels
from tinytl.engine.mixin import Mixin, become
from tinytl.engine.plan import EnginePlan


class FusedStem(NamedTuple):
    """The layer that computes stem and first block, and its name in the network."""

    layer: nn.Module
    name: str


class AppliedByFirstBlock(Mixin):
    """A norm whose parameters keep their names here, while the first block applies it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input as it is."""
        return input


def fuse_stem(network: Any, kinds: tuple[Any, ...], plan: EnginePlan, kernels: Kernels) -> FusedStem | None:
    """Replace stem and first block by the first of these layers that can be both; None if none can."""
    parts = BottleneckParts.of_stem(network, plan, kernels)
    if parts is None:
        return None
    layers = (kind.of_parts(parts, plan, kernels) for kind in kinds)
    layer = next((layer for layer in layers if layer is not None), None)
    if layer is None:
        return None
    network.blocks[0][0] = layer
    network.conv_stem = nn.Identity()
    network.bn1 = parts.norms["expand"]
    become(network.bn1, AppliedByFirstBlock)
    return FusedStem(layer, "blocks.0.0")

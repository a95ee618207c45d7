"""The stem and the first block of a network as one sliced bottleneck.

The network's largest maps lie between the two; in slices they are never whole.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from tinytl.engine.bottleneck import SlicedBottleneck
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.kernels import Kernels
from tinytl.engine.mixin import Mixin, become
from tinytl.engine.plan import EnginePlan


class FusedStem(NamedTuple):
    """The layer that computes stem and first block, and its name in the network."""

    layer: SlicedBottleneck
    name: str


class AppliedByFirstBlock(Mixin):
    """A norm whose parameters keep their names here, while the first block applies it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input as it is."""
        return input


def fuse_stem(network: Any, plan: EnginePlan, kernels: Kernels) -> FusedStem | None:
    """Replace stem and first block by one sliced bottleneck; None where they cannot be."""
    parts = BottleneckParts.of_stem(network, plan, kernels)
    if parts is None:
        return None
    layer = SlicedBottleneck(parts, plan, kernels)
    network.blocks[0][0] = layer
    network.conv_stem = nn.Identity()
    network.bn1 = parts.norms["expand"]
    become(network.bn1, AppliedByFirstBlock)
    return FusedStem(layer, "blocks.0.0")

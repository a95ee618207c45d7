"""How many channels the images of a network have."""

from torch import nn

from tinytl.engine.kept import FALLBACK_SIZE


def image_channels(network: nn.Module) -> int:
    """Return the channels that the first convolution takes; timm's record of a gray network says 3."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first else FALLBACK_SIZE[0]

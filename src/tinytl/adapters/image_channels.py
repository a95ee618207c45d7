"""How many channels the images of a network have."""

from torch import nn

COLOR = 3  # channels of an image where no layer says otherwise


def image_channels(network: nn.Module) -> int:
    """Return the channels that the first convolution takes. timm's record says 3, even for one."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first else COLOR

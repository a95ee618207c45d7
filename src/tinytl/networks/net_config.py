"""What a `net.config` says, the JSON by which the published code of TinyTL describes a network.

Only what decides the network is kept; the classifier is always a new one.
"""

from dataclasses import dataclass

ACTIVATIONS = ("relu", "relu6", "h_swish", "h_sigmoid", "swish", "sigmoid", "tanh")


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, a norm and an activation, each of the last two where it is given."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    dilation: int
    groups: int
    bias: bool
    use_bn: bool
    use_se: bool  # squeeze and excitation at the end
    act: str | None  # of ACTIVATIONS


@dataclass(frozen=True)
class Bottleneck:
    """Expansion, convolution and projection; or, reduced, one convolution that expands, and projection."""

    in_channels: int
    out_channels: int
    middle: int  # channels between expansion and projection
    kernel_size: int
    stride: int
    groups: int  # of the k x k convolution
    reduced: bool
    expands: bool  # False: an inverted bottleneck without its expansion
    use_se: bool
    act: str | None


@dataclass(frozen=True)
class LiteLayer:
    """The shape of a lite residual module."""

    in_channels: int
    out_channels: int
    middle: int
    kernel_size: int
    stride: int
    groups: int
    act: str
    pooling: int | None  # None: global average pooling
    upsampling: str


Layer = ConvLayer | Bottleneck


@dataclass(frozen=True)
class Block:
    """A residual block; `number` counts all blocks of the file, also those that compute nothing."""

    number: int
    conv: Layer | None  # None: the shortcut alone
    lite: LiteLayer | None
    shortcut: Layer | None  # None: its input, or nothing
    has_identity: bool  # its input is added

    @property
    def layer(self) -> Layer:
        """What decides the number of channels and the stride."""
        layer = self.conv or self.shortcut
        assert layer is not None
        return layer


@dataclass(frozen=True)
class NetConfig:
    """A network as `net.config` describes it."""

    eps: float
    momentum: float  # of BatchNorm
    has_group_norm: bool
    stem: ConvLayer
    blocks: tuple[Block, ...]  # those that compute something
    mix: ConvLayer | None  # after the blocks
    features: int  # channels that the classifier sees

    @property
    def has_lite_residuals(self) -> bool:
        """Whether blocks have lite residual modules."""
        return any(block.lite is not None for block in self.blocks)

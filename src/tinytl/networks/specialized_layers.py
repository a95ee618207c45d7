"""The layers of a `net.config`, as blocks of timm wherever these compute the same."""

from typing import Any

from timm.layers import BatchNormAct2d, GroupNormAct, Sigmoid, Tanh, make_divisible
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
)
from torch import Tensor, nn

from tinytl.errors import UserError
from tinytl.networks.lite_residual import (
    GlobalLiteResidual,
    LiteResidual,
    LiteResidualBlock,
    LiteResidualConfig,
)
from tinytl.networks.net_config import Block, Bottleneck, ConvLayer, Layer, LiteLayer, NetConfig
from tinytl.networks.norms import NormName, group_count

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, "h_sigmoid": nn.Hardsigmoid,
    "swish": nn.SiLU, "sigmoid": Sigmoid, "tanh": Tanh,
}  # fmt: skip
REDUCTION = 4  # of squeeze and excitation


class Residual(nn.Module):
    """A block whose shortcut has layers of its own; `conv` None: it has no other layers."""

    has_skip = True

    def __init__(self, conv: nn.Module | None, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv, self.shortcut = conv, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        shortcut = self.shortcut(x)
        return shortcut if self.conv is None else self.conv(x) + shortcut


class ConvNormAct(nn.Module):
    """A convolution with what follows it, and a shortcut around it where `has_skip`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, se: nn.Module, has_skip: bool) -> None:
        super().__init__()
        self.conv, self.bn1, self.se, self.has_skip = conv, norm, se, has_skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        out = self.se(self.bn1(self.conv(x)))
        return out + x if self.has_skip else out


class Layers:
    """Makes the layers of one network, with random weights."""

    def __init__(self, config: NetConfig) -> None:
        self.config = config

    def norm(self, channels: int, act: str | None) -> nn.Module:
        """A norm and the activation after it."""
        options: dict[str, Any] = {"eps": self.config.eps, "apply_act": act is not None}
        if act is not None:
            options["act_layer"] = ACTIVATIONS[act]
        if self.config.has_group_norm:
            return GroupNormAct(channels, group_count(channels), **options)
        return BatchNormAct2d(channels, momentum=self.config.momentum, **options)

    def conv_and_norm(self, layer: ConvLayer, where: str) -> tuple[nn.Module, nn.Module]:
        """The first or last convolution of the network, and its norm."""
        if layer.use_se:
            raise UserError(f"net.config: {where}: use_se=True is known in blocks only")
        return _conv(layer, bias=layer.bias, dilation=layer.dilation), self._norm_of(layer)

    def block(self, block: Block) -> nn.Module:
        """A block without its lite residual module."""
        if block.shortcut is None:
            assert block.conv is not None
            return self._layer(block.conv, block.has_identity)
        conv = None if block.conv is None else self._layer(block.conv, False)
        return Residual(conv, self._layer(block.shortcut, False))

    def with_lite(self, block: nn.Module, lite: LiteLayer) -> nn.Module:
        """The block and its lite residual module, which adds nothing yet."""
        shape = LiteResidualConfig(
            lite.kernel_size, lite.groups, lite.middle / lite.in_channels, lite.pooling or 1, lite.upsampling  # type: ignore[arg-type]
        )  # fmt: skip
        kind = GlobalLiteResidual if lite.pooling is None else LiteResidual
        stride = 1 if lite.pooling is None else lite.stride  # a map of one pixel has no stride
        norm: NormName = "gn" if self.config.has_group_norm else "bn"
        module = kind(
            lite.in_channels, lite.out_channels, stride, lite.kernel_size, shape, norm, self.config.eps
        )
        if lite.act != "relu":
            module.act = ACTIVATIONS[lite.act](inplace=True)
        if isinstance(block, Residual):
            assert block.conv is not None
            block.conv = LiteResidualBlock(block.conv, module)
            return block
        return LiteResidualBlock(block, module)

    def _layer(self, layer: Layer, has_skip: bool) -> nn.Module:
        if isinstance(layer, ConvLayer):
            conv = _conv(layer, bias=layer.bias, dilation=layer.dilation)
            return ConvNormAct(conv, self._norm_of(layer), self._se(layer, layer.out_channels), has_skip)
        block = self._reduced(layer) if layer.reduced else self._inverted(layer)
        block.has_skip = has_skip
        return block

    def _norm_of(self, layer: ConvLayer) -> nn.Module:
        if layer.use_bn:
            return self.norm(layer.out_channels, layer.act)
        return nn.Identity() if layer.act is None else ACTIVATIONS[layer.act](inplace=True)

    def _inverted(self, layer: Bottleneck) -> Any:
        block: Any
        if layer.expands:
            block = InvertedResidual(layer.in_channels, layer.out_channels)
            block.conv_pw = nn.Conv2d(layer.in_channels, layer.middle, 1, bias=False)
            block.bn1, block.bn2 = (self.norm(layer.middle, layer.act) for _ in range(2))
            block.conv_pwl = nn.Conv2d(layer.middle, layer.out_channels, 1, bias=False)
            block.bn3 = self.norm(layer.out_channels, None)
        else:
            block = DepthwiseSeparableConv(layer.in_channels, layer.out_channels)
            block.bn1 = self.norm(layer.middle, layer.act)
            block.conv_pw = nn.Conv2d(layer.middle, layer.out_channels, 1, bias=False)
            block.bn2 = self.norm(layer.out_channels, None)
        block.conv_dw = _conv(layer, layer.middle, layer.middle)
        block.se = self._se(layer, layer.middle)
        return block

    def _reduced(self, layer: Bottleneck) -> Any:
        block: Any = EdgeResidual(layer.in_channels, layer.out_channels)
        block.conv_exp = _conv(layer, layer.in_channels, layer.middle)
        block.bn1 = self.norm(layer.middle, layer.act)
        block.se = self._se(layer, layer.middle)
        block.conv_pwl = nn.Conv2d(layer.middle, layer.out_channels, 1, bias=False)
        block.bn2 = self.norm(layer.out_channels, None)
        return block

    def _se(self, layer: Layer, channels: int) -> nn.Module:
        if not layer.use_se:
            return nn.Identity()
        reduced = make_divisible(channels // REDUCTION, 8)
        return SqueezeExcite(channels, rd_channels=reduced, act_layer=nn.ReLU, gate_layer=nn.Hardsigmoid)


def _conv(
    layer: Layer, in_channels: int | None = None, out_channels: int | None = None, bias: bool = False,
    dilation: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """The k x k convolution of a layer, padded such that stride 1 keeps the map's size."""
    padding = dilation * (layer.kernel_size // 2)
    return nn.Conv2d(
        in_channels or layer.in_channels, out_channels or layer.out_channels, layer.kernel_size,
        layer.stride, padding, dilation, layer.groups, bias,
    )  # fmt: skip

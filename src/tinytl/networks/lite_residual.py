"""Lite residual modules: small trainable branches beside frozen blocks (TinyTL, section 3.2)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytl.errors import UserError
from tinytl.networks.blocks import EXPANDED, RESIDUAL, convolutions, last_block_names
from tinytl.networks.norms import NormName, norm_layer

# The published code fits kernel sizes to maps as if every image had this resolution.
NOMINAL_RESOLUTION = 128


@dataclass(frozen=True)
class LiteResidualConfig:
    """Shape of a lite residual module; the defaults are the paper's."""

    kernel_size: int = 5  # of the grouped convolution; shrinks to fit small maps
    groups: int = 2  # of that convolution
    expansion: float = 1.0  # its output channels over its input channels
    pooling: int = 2  # the block's input is average-pooled by this factor; 1: not at all
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    blocks: int | None = None  # in this many of the last blocks; None: in all
    pretrained: bool = True  # False: random weights, whatever the checkpoint holds (the paper's Table 4)

    def __post_init__(self) -> None:
        for name in ("kernel_size", "groups", "pooling"):
            value = getattr(self, name)
            must_be_odd = name == "kernel_size"
            if not isinstance(value, int) or value < 1 or (must_be_odd and value % 2 == 0):
                kind = "an odd positive" if must_be_odd else "a positive"
                raise UserError(f"lite_residual.{name}={value}: {kind} whole number is needed")
        if not 0 < self.expansion < math.inf:
            raise UserError(f"lite_residual.expansion={self.expansion}: a positive number is needed")
        if self.upsampling not in ("bilinear", "nearest"):
            raise UserError(f"lite_residual.upsampling={self.upsampling}: one of bilinear, nearest")


class LiteResidual(nn.Module):
    """Average pool, grouped convolution, norm, ReLU, 1x1 convolution, norm, upsample.

    The last norm's scale starts at 0, so that the module adds nothing at first.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, kernel_size: int,
        config: LiteResidualConfig, norm: NormName, eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        middle = max(config.groups, round(in_channels * config.expansion / config.groups) * config.groups)
        layer = norm_layer(norm, eps)
        self.pooling, self.upsampling = config.pooling, config.upsampling
        self.conv1 = nn.Conv2d(
            in_channels, middle, kernel_size, stride, kernel_size // 2, groups=config.groups, bias=False
        )
        self.bn1 = layer(middle)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.final_bn = layer(out_channels)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        nn.init.zeros_(self.final_bn.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, in, H, W) -> (B, out, *size)."""
        if self.pooling > 1 and min(x.shape[-2:]) >= self.pooling:  # a 1x1 map cannot be pooled
            x = F.avg_pool2d(x, self.pooling)  # (B, in, H/2, W/2)
        x = self.act(self.bn1(self.conv1(x)))  # (B, middle, H/2/stride, W/2/stride)
        x = self.final_bn(self.conv2(x))  # (B, out, H/2/stride, W/2/stride)
        align = {"align_corners": False} if self.upsampling == "bilinear" else {}
        return F.interpolate(x, size, mode=self.upsampling, **align)


class GlobalLiteResidual(LiteResidual):
    """A lite residual of the whole map's average, which is added to every pixel."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, in, H, W) -> (B, out, *size)."""
        return super().forward(x.mean((2, 3), keepdim=True), size)


class LiteResidualBlock(nn.Module):
    """An inverted bottleneck, which has its own shortcut, plus its lite residual."""

    def __init__(self, main_branch: nn.Module, lite_residual: LiteResidual) -> None:
        super().__init__()
        self.main_branch = main_branch
        self.lite_residual = lite_residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        main = self.main_branch(x)
        return main + self.lite_residual(x, main.shape[-2:])


class LiteResidualShortcut(nn.Module):
    """A ResNet block's shortcut plus the lite residual.

    The block adds its shortcut before its last ReLU, so the lite residual is part of that sum.
    """

    def __init__(self, shortcut: nn.Module, lite_residual: LiteResidual) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.lite_residual = lite_residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        shortcut = self.shortcut(x)
        return shortcut + self.lite_residual(x, shortcut.shape[-2:])


class BlockShape(NamedTuple):
    """What a lite residual must know of its block."""

    in_channels: int
    out_channels: int
    stride: int


def insert_lite_residuals(
    network: nn.Module, config: LiteResidualConfig, norm: NormName, eps: float,
    shapes: Mapping[str, BlockShape] | None = None,
) -> int:  # fmt: skip
    """Add a lite residual to every block that can take one, in place; return their number.

    Blocks are those of timm's types, or those that `shapes` names. Beside a block of another type its lite
    residual is added to the block's output. Raises UserError, before anything is added, where the
    configuration does not fit the channels.
    """
    places = list(_places(network, shapes))
    last = None if config.blocks is None else last_block_names(network, config.blocks)
    for path, shape in places:
        if shape.in_channels % config.groups:
            raise UserError(
                f"lite_residual.groups={config.groups} does not divide {shape.in_channels} channels ({path})"
            )
    resolution, inserted = NOMINAL_RESOLUTION, 0
    for path, shape in places:
        kernel = _fitting_kernel(config.kernel_size, max(1, resolution // config.pooling))
        resolution = max(1, resolution // shape.stride)
        if last is None or path in last:
            block = network.get_submodule(path)
            lite = LiteResidual(*shape, kernel, config, norm, eps).to(next(block.parameters()))
            _insert(network, path, lite)
            inserted += 1
    return inserted


def _insert(network: nn.Module, path: str, lite: LiteResidual) -> None:
    """Put a lite residual into the shortcut of a ResNet's block, or beside a block of another type."""
    parent, _, name = path.rpartition(".")
    block: Any = network.get_submodule(path)
    if isinstance(block, RESIDUAL):
        block.downsample = LiteResidualShortcut(block.downsample or nn.Identity(), lite)
    else:
        setattr(network.get_submodule(parent), name, LiteResidualBlock(block, lite))


def _places(network: nn.Module, shapes: Mapping[str, BlockShape] | None) -> Iterator[tuple[str, BlockShape]]:
    """Yield (name, shape) of the blocks that take a lite residual."""
    if shapes is not None:
        yield from shapes.items()
        return
    for parent_name, parent in network.named_modules():
        for name, block in parent.named_children():
            shape = _shape(block) if isinstance(block, EXPANDED + RESIDUAL) else None
            if shape is not None:
                yield f"{parent_name}.{name}".lstrip("."), shape


def _shape(block: nn.Module) -> BlockShape | None:
    """The shape of a block of timm; None for mixed convolutions."""
    first, *_, last = convolutions(block)
    if not (isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)):
        return None
    strides = (getattr(child, "stride", 1) for child in block.children())  # of convolutions and blur pools
    stride = math.prod(s[0] if isinstance(s, tuple) else s for s in strides)
    return BlockShape(first.in_channels, last.out_channels, stride)


def _fitting_kernel(kernel_size: int, resolution: int) -> int:
    """The kernel size, made smaller by steps of 2 until it is at most the map's resolution."""
    while kernel_size > max(1, resolution):
        kernel_size -= 2
    return kernel_size


def has_lite_residuals(network: nn.Module) -> bool:
    """Whether the network contains lite residual modules."""
    return any(isinstance(module, LiteResidual) for module in network.modules())


def is_pretrained(network: nn.Module) -> bool | None:
    """Whether the lite residual modules have learned weights; None if there are no such modules.

    New modules have 0 as the scale of their last norm.
    """
    scales: list[Any] = [m.final_bn.weight for m in network.modules() if isinstance(m, LiteResidual)]
    return any(bool(scale.any()) for scale in scales) if scales else None


@torch.no_grad()
def fit_statistics(network: nn.Module, images: Tensor) -> None:
    """Store the statistics of `images` (N, 3, R, R) in the BatchNorm layers of lite residual modules.

    New modules have none, and norm=bn_frozen would use mean 0 and variance 1 instead.
    """
    norms = [
        norm
        for module in network.modules()
        if isinstance(module, LiteResidual)
        for norm in (module.bn1, module.final_bn)
        if isinstance(norm, nn.BatchNorm2d)
    ]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics of these images alone
    network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()

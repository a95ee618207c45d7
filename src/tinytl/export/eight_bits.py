"""Make a network's convolutions plain, and hold its frozen weights in 8 bits in what is exported.

An exported program dequantises a weight before each use, or once, as its runtime decides. Activations stay in
floating point, so that the results are the same to rounding.
"""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d
from tinytl.networks.quantize import QuantizedTensor, codes_of


def make_exportable(network: nn.Module, in_8_bits: bool) -> int:
    """Convert a plain network in place; return how many frozen weights (elements) are held in 8 bits.

    Convolutions with weight standardisation become plain ones that hold the standardised weight.
    """
    held = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            weight: Any = layer.weight
            codes = codes_of(weight.detach()) if in_8_bits and not weight.requires_grad else None
            plain, unstandardized = layer, None
            if isinstance(layer, WeightStandardizedConv2d):
                plain, unstandardized = _plain_convolution(layer), weight.detach()
                setattr(parent, name, plain)
            if codes is not None:
                _hold(plain, codes, unstandardized)
                held += weight.numel()
    return held


def _plain_convolution(conv: WeightStandardizedConv2d) -> nn.Conv2d:
    """The convolution without standardisation, with the weight that standardisation gives."""
    kind: Any = Conv2dSame if conv.same else nn.Conv2d
    plain = kind(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, bias=False, padding_mode=conv.padding_mode, device="meta",
    )  # fmt: skip
    plain.weight = nn.Parameter(conv.standardized(conv.weight).detach(), requires_grad=False)
    return plain


def _hold(layer: nn.Module, codes: QuantizedTensor, unstandardized: Tensor | None) -> None:
    """Replace the weight by its codes and a function that dequantises them.

    `unstandardized` is the weight before standardisation; None: it is not standardised.
    """
    dequantize: nn.Module
    factor = shift = None
    if unstandardized is not None:
        factor, shift = _standardization(unstandardized)
    if codes.codes.dtype == torch.int8:
        dequantize = FromScale(codes.values if factor is None else codes.values * factor, shift)
    else:
        dequantize = FromTable(codes.values, factor, shift)
    layer.weight = nn.Parameter(codes.codes, requires_grad=False)
    parametrize.register_parametrization(layer, "weight", dequantize, unsafe=True)


def _standardization(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight standardisation as a factor and a shift per output channel, (out, 1, 1, 1) each."""
    std, mean = torch.std_mean(weight.double(), dim=(1, 2, 3), keepdim=True)
    factor = 1 / (std + WS_EPS)
    return factor.to(weight.dtype), (-mean * factor).to(weight.dtype)


class FromScale(nn.Module):
    """codes (int8) * scale + shift, per output channel; in ONNX a DequantizeLinear, then Add."""

    def __init__(self, scale: Tensor, shift: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift)

    def forward(self, codes: Tensor) -> Tensor:
        """(out, ...) -> (out, ...)."""
        scale: Any = self.scale
        shift: Any = self.shift
        if torch.onnx.is_in_onnx_export():
            scales, shape = scale.flatten(), codes.shape
            weight: Tensor = torch.onnx.ops.symbolic(  # type: ignore[assignment]
                "DequantizeLinear", (codes, scales), {"axis": 0}, dtype=scale.dtype, shape=shape
            )
        else:
            weight = codes.to(scale.dtype) * scale
        return weight if shift is None else weight + shift


class FromTable(nn.Module):
    """table[codes] * factor + shift: codes (uint8) are positions in a table of at most 256 values."""

    def __init__(self, table: Tensor, factor: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def forward(self, codes: Tensor) -> Tensor:
        """(out, ...) -> (out, ...)."""
        table: Any = self.table
        weight = table.index_select(0, codes.flatten().int()).reshape(codes.shape)
        if self.factor is None or self.shift is None:
            return weight
        return weight * self.factor + self.shift

"""What lean layers compute while a network is traced or exported: the same by stock operators alone.

Tracers (torch.compile, torch.export, torch.jit.trace, both ONNX exporters) cannot look into native calls, nor
into functions of autograd that hold a layer.
"""

from typing import Any

import torch
import torch.fx
from timm.layers import pad_same
from torch import Tensor
from torch._subclasses import FakeTensor

from tinytl.engine.convolutions import pads_as_tensorflow
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.stock import stock_of
from tinytl.errors import UserError


def is_traced(x: Tensor) -> bool:
    """Whether `x` goes through a tracer. Raises UserError for torch.fx, which cannot trace lean layers."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or isinstance(x, FakeTensor):
        return True
    if isinstance(x, torch.fx.Proxy):
        raise UserError("engine=lean: torch.fx cannot trace lean layers; make_plain(network) first")
    return False


def convolve(conv: Any, x: Tensor) -> Tensor:
    """Apply a convolution, which may be a lean layer's, by stock operators."""
    if isinstance(conv, FrozenWeight):
        stock, weight = stock_of(conv), conv.used()
    else:
        stock = conv
        weight = conv.standardized(conv.weight) if hasattr(conv, "standardized") else conv.weight
    if pads_as_tensorflow(stock):
        x = pad_same(x, list(stock.kernel_size), list(stock.stride), list(stock.dilation))
    return stock._conv_forward(x, weight, conv.bias)


def compute_bottleneck(block: Any, x: Tensor, adds_input: bool) -> Tensor:
    """Compute a lean bottleneck, or (`adds_input`) its sum with x, part by part."""
    out, squeeze = x, getattr(block, "se", None)
    *before, (project, last_norm) = block.parts
    for conv, norm in before:
        out = norm.stock_forward(convolve(conv, out))
    if squeeze is not None:
        gates = out.mean((2, 3), keepdim=True)
        gates = convolve(squeeze.conv_expand, squeeze.act1(convolve(squeeze.conv_reduce, gates)))
        out = out * squeeze.gate(gates)
    out = last_norm.stock_forward(convolve(project, out))
    return out + x if adds_input else out

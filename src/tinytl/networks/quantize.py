"""Quantise frozen weights to 8 bits.

`int8` is symmetric, with one scale per output channel. `kmeans` has 256 centroids per tensor, as in
the paper's code. Afterwards a weight takes at most 256 values per channel or tensor. PyTorch's own
operators need it in float32, so memory shrinks only under an engine that dequantises the codes layer
by layer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tinytl.errors import UserError
from tinytl.networks.lean_mark import is_lean

QuantizeName = Literal["int8", "kmeans", "off"]
CENTROIDS = 256
KMEANS_STEPS = 50  # the published code's limit; we stop earlier if no centroid moves


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes of one byte per element, and the values that they stand for."""

    codes: Tensor  # int8, the weight's shape; or uint8 where `values` is a table of centroids
    values: Tensor  # float: a scale per output channel, (out, 1, ...), or centroids, (256,)

    def dequantize(self) -> Tensor:
        """The weight in floating point."""
        if self.codes.dtype == torch.uint8:
            return self.values[self.codes.long()]
        return self.codes.to(self.values.dtype) * self.values


def quantize_int8(weight: Tensor) -> QuantizedTensor:
    """Quantise symmetrically to int8, with one scale per output channel (dimension 0)."""
    if weight.is_meta:
        scale = weight.new_empty(len(weight), *[1] * (weight.ndim - 1))
        return QuantizedTensor(torch.empty_like(weight, dtype=torch.int8), scale)
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
    scale = scale.clamp_min(torch.finfo(weight.dtype).tiny)  # for a channel of zeros
    return QuantizedTensor((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)


def quantize_kmeans(weight: Tensor) -> QuantizedTensor:
    """Quantise to 256 centroids by Lloyd's algorithm in one dimension, from evenly spaced centroids.

    An even start keeps the rare large weights (Han et al., "Deep Compression", arXiv 1510.00149).
    """
    if weight.is_meta:
        return QuantizedTensor(weight.to(torch.uint8), weight.new_empty(CENTROIDS))
    flat = weight.flatten()
    low, high = flat.aminmax()
    steps = torch.linspace(0, 1, CENTROIDS, device=flat.device, dtype=flat.dtype)
    centroids = low + (high - low) * steps  # (256,)
    for _ in range(KMEANS_STEPS):
        codes = _nearest(flat, centroids)
        total = torch.zeros_like(centroids).index_add_(0, codes, flat)
        count = torch.bincount(codes, minlength=CENTROIDS)
        moved = torch.where(count > 0, total / count.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return QuantizedTensor(_nearest(weight, centroids).to(torch.uint8), centroids)


def _nearest(weight: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the sorted centroids for every element."""
    return torch.bucketize(weight, (centroids[1:] + centroids[:-1]) / 2)


@torch.no_grad()
def codes_of(weight: Tensor) -> QuantizedTensor | None:
    """The 8-bit codes of a weight that `int8` or `kmeans` has rounded before; else None.

    A weight on the meta device gets codes without values, by the quantiser that `quantize_frozen` or
    `mark_quantized` noted.
    """
    if weight.is_meta:
        quantizer = getattr(weight, "quantizer", None)
        return None if quantizer is None else QUANTIZERS[quantizer](weight)
    scale = getattr(weight, "int8_scale", None)
    noted = None if scale is None else _by_scale(weight, scale)
    if noted is not None:
        return noted
    int8 = quantize_int8(weight)
    if torch.allclose(int8.dequantize(), weight, rtol=8 * torch.finfo(weight.dtype).eps, atol=0):
        return int8
    return _by_table(weight)


def mark_quantized(weight: Tensor, values: Tensor) -> None:
    """Note on a weight the values of its codes, so that `codes_of` finds exactly these again."""
    is_int8 = values.ndim > 1
    weight.quantizer = "int8" if is_int8 else "kmeans"  # type: ignore[attr-defined]
    if is_int8:
        weight.int8_scale = values  # type: ignore[attr-defined]


def quantized_again(weight: Tensor, before: QuantizedTensor) -> QuantizedTensor:
    """Quantise another weight as the one before was; values that are rounded already stay as they are."""
    if before.codes.dtype == torch.int8:
        return _by_scale(weight, before.values) or quantize_int8(weight)
    return _by_table(weight) or quantize_kmeans(weight)


def _by_table(weight: Tensor) -> QuantizedTensor | None:
    """The codes of a weight by a table of its values; None where they are too many."""
    if weight.is_meta:
        return None
    values, codes = weight.unique(return_inverse=True)
    return QuantizedTensor(codes.to(torch.uint8), values) if len(values) <= CENTROIDS else None


def _by_scale(weight: Tensor, scale: Tensor) -> QuantizedTensor | None:
    """The int8 codes of a weight by this scale; None where they do not stand for exactly these values."""
    if weight.is_meta or scale.is_meta or scale.dtype != weight.dtype or scale.device != weight.device:
        return None
    int8 = QuantizedTensor((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)
    return int8 if torch.equal(int8.dequantize(), weight) else None


KEEPS_ROUNDED = "tinytl_keeps_rounded"  # attribute of a network that `keep_rounded` has marked


def keep_rounded(network: nn.Module) -> None:
    """Let `quantize_frozen` leave weights as they are that have 256 values at most.

    The published specialised networks have weights that are rounded already; once more would change them.
    """
    setattr(network, KEEPS_ROUNDED, True)


def rounded_weight(weight: Tensor, name: QuantizeName, network: nn.Module) -> Tensor:
    """A frozen weight of the network as it is after `quantize_frozen`."""
    if hasattr(network, KEEPS_ROUNDED) and len(weight.unique()) <= CENTROIDS:
        return weight
    return QUANTIZERS[name](weight).dequantize()


QUANTIZERS = {"int8": quantize_int8, "kmeans": quantize_kmeans}


@torch.no_grad()
def quantize_frozen(network: nn.Module, name: QuantizeName) -> int:
    """Round the frozen weights of convolutions and linear layers to 8 bits, in place; return their number.

    Norm scales and shifts stay as they are: they have one element per channel, and so would the scales.
    Raises UserError for a network that is lean already.
    """
    if name == "off":
        return 0
    if is_lean(network):
        raise UserError(f"quantize={name}: the network is lean already; round it before make_lean")
    frozen = [p for p in network.parameters() if p.ndim > 1 and not p.requires_grad]
    for parameter in frozen:
        if parameter.is_meta:
            parameter.quantizer = name  # type: ignore[attr-defined]
            continue
        parameter.copy_(rounded_weight(parameter, name, network))
    return sum(parameter.numel() for parameter in frozen)

"""Frozen weights as the lean engine stores them: in 8 bits where their values allow it."""

import torch
from torch import Tensor, nn

from tinytl.engine.kernels import Kernels
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d
from tinytl.networks.quantize import QuantizedTensor, codes_of


class FrozenWeight(nn.Module):
    """A frozen weight. When it is used, it is expanded to floating point, as a whole or some of its rows.

    It takes one byte per element where its values are quantised (int8 with a scale per channel, or a
    table of 256 values), and otherwise stays as it is. Weight standardisation is a scale and a shift per
    output channel, computed once here. With `transposed`, (out, in) is stored and expanded as (in, out).
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    table: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, transposed: bool = False) -> None:
        super().__init__()
        weight = layer.weight.detach()
        channel = (len(weight), *[1] * (weight.ndim - 1))  # shape of one value per output channel
        scale, shift = weight.new_ones(channel), None
        if isinstance(layer, WeightStandardizedConv2d):
            std, mean = torch.std_mean(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
            scale, shift = 1 / (std + WS_EPS), -mean / (std + WS_EPS)
        quantized = codes_of(layer.weight) or QuantizedTensor(weight.clone(), weight.new_ones(()))
        is_table = quantized.codes.dtype == torch.uint8
        if not is_table:
            scale = scale * quantized.values
        tensors = [quantized.codes, scale, shift]
        if transposed:
            tensors = [t if t is None else t.flatten(1).t().contiguous() for t in tensors]
        for name, tensor in zip(("codes", "scale", "shift"), tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("table", quantized.values if is_table else None, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that the weight is expanded to."""
        return self.scale.dtype

    def expand(self, kernels: Kernels, rows: slice = slice(None)) -> Tensor:
        """The weight in floating point, or some rows of it."""
        codes = self.codes[rows] if self.table is None else self.table[self.codes[rows].long()]
        shift = None if self.shift is None else _rows(self.shift, rows)
        return kernels.expand_codes(codes, _rows(self.scale, rows), shift)


def _rows(values: Tensor, rows: slice) -> Tensor:
    return values if len(values) == 1 else values[rows]

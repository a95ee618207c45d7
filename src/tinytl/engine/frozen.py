"""Frozen weights as the lean engine stores them: in 8 bits where their values allow it."""

from typing import Any

import torch
from torch import Tensor, nn

from tinytl.engine.codes import Codes
from tinytl.engine.kernels import Kernels
from tinytl.engine.stock import remember_stock, stock_of, without_tensors
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d
from tinytl.networks.quantize import QuantizedTensor, codes_of, mark_quantized, quantized_again

SAVED = ("weight", "weight_scale", "weight_table")  # names in a state_dict; see `_save_to_state_dict`


class FrozenWeight(nn.Module):
    """A layer whose weight is frozen. When it is used, it is dequantised, or some rows of it.

    The parameter `weight` holds the codes: a byte per element where the values are quantised (int8 with a
    scale per output channel, or the indices of a table of 256 values), and otherwise the values. `scale` and
    `shift` turn codes into the weight that is used; weight standardisation is part of them. With
    `transposed`, (out, in) is stored and dequantised as (in, out).
    """

    scale: Tensor
    shift: Tensor | None
    table: Tensor | None
    raw_scale: Tensor | None  # (out), before standardisation; None: `scale` is it

    def __init__(self, layer: nn.Conv2d | nn.Linear, transposed: bool = False) -> None:
        nn.Module.__init__(self)  # not that of a class that NativeHead puts in between
        remember_stock(self, without_tensors(layer))
        self.transposed, self.saves_codes = transposed, False
        self.shape = layer.weight.shape
        # Not registered: a class may have a property of this name.
        self._parameters["weight"] = None
        for name in ("scale", "shift", "table", "raw_scale"):
            self.register_buffer(name, None, persistent=False)
        weight = layer.weight.detach()
        quantized = codes_of(layer.weight) or QuantizedTensor(weight.clone(), weight.new_ones(()))
        self._store(quantized, weight)
        self.bias = layer.bias

    @property
    def codes(self) -> Tensor:
        """The codes in the order in which they are stored."""
        codes = self._parameters["weight"]
        assert codes is not None
        return codes

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the dequantised weight."""
        return self.scale.dtype

    @property
    def kind(self) -> str:
        """How the weight is stored: int8, a table, or the floating-point type."""
        names = {torch.int8: "int8", torch.uint8: "8 bits by a table"}
        return names.get(self.codes.dtype, str(self.codes.dtype).removeprefix("torch."))

    def extra_repr(self) -> str:
        """What the stock layer says of itself, and how its weight is stored."""
        return f"{stock_of(self).extra_repr()}, weight={self.kind}"

    def dequantize(self, kernels: Kernels, rows: slice = slice(None)) -> Tensor:
        """The weight that is used, in floating point, or some rows of it."""
        codes = self.codes[rows] if self.table is None else self.table[self.codes[rows].long()]
        shift = None if self.shift is None else _rows(self.shift, rows)
        return kernels.expand_codes(codes, _rows(self.scale, rows), shift)

    def used(self) -> Tensor:
        """The weight that is used, in floating point and in the stock layer's shape, by stock operators."""
        weight = self._values() * self._natural_values(self.scale)[:, None]
        if self.shift is not None:
            weight = weight + self._natural_values(self.shift)[:, None]
        return weight.reshape(self.shape)

    def raw(self) -> Tensor:
        """The stock layer's weight in floating point: before standardisation."""
        values = self._values()
        if self._is_int8():
            values = values * self._raw_scale()[:, None]
        return values.reshape(self.shape)

    def plain_parameter(self) -> nn.Parameter:
        """The stock layer's weight, marked such that `codes_of` finds the same codes."""
        parameter = nn.Parameter(self.raw(), requires_grad=False)
        if not self.codes.is_floating_point():
            mark_quantized(parameter, self._quantized().values)
        return parameter

    def _is_int8(self) -> bool:
        return self.codes.dtype == torch.int8

    def _values(self) -> Tensor:
        """What codes stand for before any scale, (out, elements of a channel)."""
        codes = self._natural_codes(self.codes)
        return codes.to(self.dtype) if self.table is None else self.table[codes.long()]

    def _raw_scale(self) -> Tensor:
        """The scale of the codes before standardisation, (out)."""
        return self._natural_values(self.scale) if self.raw_scale is None else self.raw_scale

    def _quantized(self) -> QuantizedTensor:
        """The codes in the stock layer's order, and the values that they stand for."""
        codes = self._natural_codes(self.codes).reshape(self.shape)
        if self.table is not None:
            return QuantizedTensor(codes, self.table)
        values = self._raw_scale() if self._is_int8() else self.scale.new_ones(())
        return QuantizedTensor(codes, values.view(-1, *[1] * (len(self.shape) - 1)))

    def _store(self, quantized: QuantizedTensor, weight: Tensor) -> None:
        """Store codes; `weight` is what they stand for."""
        channel = (len(weight), *[1] * (weight.ndim - 1))  # shape of one value per output channel
        scale, shift = weight.new_ones(channel), None
        is_int8, is_table = (quantized.codes.dtype == dtype for dtype in (torch.int8, torch.uint8))
        standardized = isinstance(stock_of(self), WeightStandardizedConv2d)
        if standardized:
            std, mean = torch.std_mean(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
            scale, shift = 1 / (std + WS_EPS), -mean / (std + WS_EPS)
        if is_int8:
            scale = scale * quantized.values
        self.scale = self._stored_values(scale)
        self.shift = None if shift is None else self._stored_values(shift)
        self.table = quantized.values if is_table else None
        self.raw_scale = quantized.values.flatten() if is_int8 and standardized else None
        self._store_codes(self._stored_codes(quantized.codes), weight.numel())

    def _store_codes(self, codes: Tensor, count: int) -> None:
        """Store codes, in place where there are such codes already, because other modules may share them."""
        before = self._parameters["weight"]
        if before is not None and before.shape == codes.shape and before.dtype == codes.dtype:
            before.data.copy_(codes)
        else:
            self._parameters["weight"] = Codes(codes, count)

    # The order in which codes and values per output channel are stored, and back to the stock layer's.
    def _stored_codes(self, codes: Tensor) -> Tensor:
        return codes.flatten(1).t().contiguous() if self.transposed else codes.contiguous()

    def _stored_values(self, values: Tensor) -> Tensor:
        return values.flatten(1).t().contiguous() if self.transposed else values

    def _natural_codes(self, codes: Tensor) -> Tensor:  # -> (out, elements of a channel)
        return codes.t() if self.transposed else codes.flatten(1)

    def _natural_values(self, values: Tensor) -> Tensor:  # -> (out)
        return values.flatten()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the stock layer's weight, or (`codes_in_state_dict`) its codes and what they stand for."""
        if self.saves_codes and not self.codes.is_floating_point():
            quantized = self._quantized()
            destination[prefix + "weight"] = quantized.codes
            name = "weight_table" if self.table is not None else "weight_scale"
            destination[prefix + name] = quantized.values.flatten()
        else:
            destination[prefix + "weight"] = self.raw()
        with _Aside(self):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load a stock layer's weight, which is rounded as the one before; or codes that were saved."""
        rest = dict(state_dict)
        given = {name: rest.pop(prefix + name, None) for name in SAVED}
        if given["weight"] is not None:
            self._load(given, prefix + "weight", error_msgs)
        elif strict:
            missing_keys.append(prefix + "weight")
        with _Aside(self):
            super()._load_from_state_dict(
                rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    @torch.no_grad()
    def _load(self, given: dict[str, Any], key: str, errors: list[str]) -> None:
        """Take over what a state_dict holds under the names SAVED; append to `errors` what does not fit."""
        weight, scale, table = (given[name] for name in SAVED)
        if weight.shape != self.shape:
            errors.append(
                f"size mismatch for {key}: copying a param with shape {weight.shape} from checkpoint, "
                f"the shape in current model is {self.shape}."
            )
            return
        if scale is None and table is None:
            if not weight.is_floating_point():
                errors.append(f"{key} holds codes of {weight.dtype}, but there is no {key}_scale or _table")
                return
            self._round(weight.detach().to(self.scale))
            return
        values = table if scale is None else scale.view(-1, *[1] * (weight.ndim - 1))
        quantized = QuantizedTensor(weight.to(self.scale.device), values.to(self.scale))
        self._store(quantized, quantized.dequantize())

    def _round(self, weight: Tensor) -> None:
        """Store a weight in floating point, in 8 bits if the one before is."""
        if self.codes.is_floating_point():
            self._store(QuantizedTensor(weight.clone(), weight.new_ones(())), weight)
            return
        quantized = quantized_again(weight, self._quantized())
        self._store(quantized, quantized.dequantize())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        count = self.codes.numel()
        super()._apply(fn, recurse)
        codes = self.codes  # on another kind of device torch has made another parameter of them
        if not isinstance(codes, Codes) or not codes.is_contiguous():
            self._parameters["weight"] = Codes(codes.data.contiguous(), count)
        return self


class _Aside:
    """Lays the parameter `weight` aside, and leaves it its place among the others."""

    def __init__(self, layer: nn.Module) -> None:
        self.parameters = layer._parameters

    def __enter__(self) -> None:
        self.weight, self.parameters["weight"] = self.parameters["weight"], None

    def __exit__(self, *_: Any) -> None:
        self.parameters["weight"] = self.weight


def _rows(values: Tensor, rows: slice) -> Tensor:
    """The values of some rows; one row of values holds for all."""
    return values if len(values) == 1 else values[rows]

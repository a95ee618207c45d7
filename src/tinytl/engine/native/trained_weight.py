"""The weights of native blocks that train: packed anew for each call; and their gradients."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinytl.engine.native.call import run_native
from tinytl.engine.native.packing import PACK, PackedWeight, Packing, round_up
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d

# Convolution of native/trained_weight.h: weight, its gradient, statistics of its rows; numbers; epsilon.
CONVOLUTION_FORMAT, NO_CONVOLUTION = "3P7ld", (0,) * 11
# PackedCopy of native/trained_packing.cpp: Convolution, Packing, whether columns are packed; three addresses.
_COPY = struct.Struct(f"{CONVOLUTION_FORMAT}{len(Packing._fields) + 1}l3P")


class PackedCopy(NamedTuple):
    """A call's copy of a trained weight, in one tensor with the statistics of its rows."""

    buffer: Tensor
    addresses: tuple[int, ...]  # the fields of Weight in native/vectors.h
    rows: int  # address of the statistics


class TrainedWeight:
    """How a block packs a weight that trains; see PackedWeight for the orders. It holds no tensor."""

    def __init__(
        self, conv: nn.Conv2d, *, rows: Packing | None = None, columns: Packing | None = None
    ) -> None:
        packing = rows or columns
        assert packing is not None
        self.packing, self.is_columns = packing, rows is None
        self.shape = tuple(conv.weight.shape)
        self.out, self.row_size = len(conv.weight), conv.weight[0].numel()
        standardized = int(isinstance(conv, WeightStandardizedConv2d))
        sizes = (conv.kernel_size[0], conv.stride[0], 0, conv.groups)
        self.numbers = (conv.in_channels, conv.out_channels, *sizes, standardized, WS_EPS)

    def buffer_sizes(self) -> tuple[int, int, int, int]:
        """Elements of values, scale, shift and statistics of the rows."""
        outputs = round_up(self.out) if self.is_columns else self.packing.lanes
        values = self.packing.lanes * (outputs if self.is_columns else self.row_size)
        return values, outputs, outputs, round_up(2 * self.out)

    def pack(self, weight: Tensor, dtype: torch.dtype) -> PackedCopy:
        """Pack the weight for a call in `dtype`; a meta tensor only takes the memory."""
        if weight.dtype != dtype or tuple(weight.shape) != self.shape:
            raise ValueError(
                f"a layer of weights {self.shape} in {dtype} cannot use one {tuple(weight.shape)} "
                f"in {weight.dtype}"
            )
        sizes = self.buffer_sizes()
        buffer = weight.new_empty(sum(sizes))
        values, scale, shift, rows = _addresses(buffer, sizes)
        if not weight.is_meta:
            conv = (weight.data_ptr(), 0, rows, *self.numbers)
            copy = _COPY.pack(*conv, *self.packing, int(self.is_columns), values, scale, shift)
            run_native("pack_trained_weight", copy, weight)
        return PackedCopy(buffer, (0, 0, values, 0, scale, shift), rows)

    def describe(self, weight: Tensor, grad: Tensor | None, copy: PackedCopy) -> tuple[float, ...]:
        """The fields of Convolution, for a gradient that is added to `grad`, if given."""
        return weight.data_ptr(), 0 if grad is None else grad.data_ptr(), copy.rows, *self.numbers

    def natural_size(self) -> int:
        """Elements of the rows that the sums of the gradient go through."""
        return round_up(self.row_size) if self.is_columns else PACK * round_up(self.row_size)


def native_weight(
    conv: nn.Conv2d, *, rows: Packing | None = None, columns: Packing | None = None
) -> PackedWeight | TrainedWeight:
    """The weight of a convolution as a native block reads it."""
    kind = TrainedWeight if conv.weight.requires_grad else PackedWeight
    return kind(conv, rows=rows, columns=columns)


def _addresses(buffer: Tensor, sizes: Sequence[int]) -> list[int]:
    """The addresses of parts of these sizes (elements), which follow each other in a buffer."""
    address, addresses = buffer.data_ptr(), []
    for size in sizes:
        addresses.append(address)
        address += size * buffer.element_size()
    return addresses


class WeightGradients:
    """Where a backward pass adds the gradients with respect to weights, and what autograd is told of them.

    Where a loop accumulates gradients, they are added to the `.grad` that is there already, and autograd is
    told of none: so there is no second tensor of that size.
    """

    def __init__(self, weights: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self.targets: list[Tensor | None] = []
        self.returned: list[Tensor | None] = []
        for weight, need in zip(weights, needs, strict=True):
            if need and _takes_gradients_in_place(weight):
                assert weight.grad is not None
                torch.autograd.graph.increment_version(weight.grad)
                self.targets.append(weight.grad)
                self.returned.append(None)
            else:
                grad = torch.zeros_like(weight) if need else None
                self.targets.append(grad)
                self.returned.append(grad)


def _takes_gradients_in_place(weight: Any) -> bool:
    """Whether there is a gradient to which another may be added, and no hook waits for it.

    The hooks of distributed training cannot be seen, so there nothing is added in place.
    """
    if not weight.is_leaf or weight.grad is None or not _is_accumulated(weight):
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    hooks, grad = weight._backward_hooks or weight._post_accumulate_grad_hooks, weight.grad
    return grad.is_contiguous() and grad.dtype == weight.dtype and not grad.requires_grad and not hooks


def _is_accumulated(leaf: Tensor) -> bool:
    """Whether the backward pass that is running adds to `leaf.grad`; torch.autograd.grad does not."""
    try:
        return torch._C._will_engine_execute_node(torch.autograd.graph.get_gradient_edge(leaf).node)
    except RuntimeError:  # which PyTorch raises within torch.autograd.grad
        return False

"""How the native blocks store frozen weights: channels in sixteens, groups of a norm never astride."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytl.engine.frozen import FrozenWeight

PACK = 16  # lanes, on every machine; PACK in native/norms.h
MAX_UNIT = 4096  # lanes that the groups of a norm may force into one step
WEIGHT_FORMAT, NO_WEIGHT = "6P", (0,) * 6  # Weight in native/vectors.h, as struct packs it


def round_up(count: int, step: int = PACK) -> int:
    """The smallest multiple of `step` that is at least `count`."""
    return -(-count // step) * step


def aligned_total(sizes: Iterable[int], element_size: int) -> int:
    """Elements of all buffers of these sizes; each buffer begins at a multiple of 64 bytes."""
    return sum(round_up(size, 64 // element_size) for size in sizes)


class Packing(NamedTuple):
    """Channels in lanes: units of `unit_lanes` lanes hold `unit_channels` channels, then padding."""

    channels: int
    unit_lanes: int
    unit_channels: int

    @staticmethod
    def of(channels: int, *group_sizes: int) -> "Packing":
        """Pack so that no group of any of these sizes is cut; they divide `channels`."""
        group = math.lcm(*group_sizes)
        lanes = round_up(group)
        return Packing(channels, lanes, min(channels, lanes // group * group))

    @property
    def lanes(self) -> int:
        """How many lanes there are, with padding."""
        return -(-self.channels // self.unit_channels) * self.unit_lanes

    def channel_of_lane(self) -> Tensor:
        """The channel in each lane, -1 in padding."""
        lane = torch.arange(self.lanes)
        unit, place = lane // self.unit_lanes, lane % self.unit_lanes
        channel = unit * self.unit_channels + place
        return channel.where((place < self.unit_channels) & (channel < self.channels), -1)

    def pack(self, values: Tensor) -> Tensor:
        """Rows of channels to rows of lanes, with zeros in padding."""
        channel = self.channel_of_lane().to(values.device)
        packed = values[channel.clamp_min(0)]
        return packed.masked_fill_((channel < 0).view(-1, *[1] * (values.ndim - 1)), 0)

    def unpack(self, packed: Tensor) -> Tensor:
        """Rows of lanes to rows of channels."""
        units = packed.reshape(-1, self.unit_lanes, *packed.shape[1:])[:, : self.unit_channels]
        return units.flatten(0, 1)[: self.channels]


class PackedWeight(FrozenWeight):
    """A frozen weight in the order in which the native blocks read it.

    `rows` packs its output channels: codes are (lanes / 16, elements of a channel, 16). Otherwise `columns`
    packs the input channels of a 1x1 convolution: codes are (lanes, out), out rounded up to 16.
    """

    def __init__(
        self, layer: nn.Conv2d, *, rows: Packing | None = None, columns: Packing | None = None
    ) -> None:
        packing = rows or columns
        assert packing is not None
        self.packing, self.packs_rows = packing, rows is not None  # before `super`, which packs
        super().__init__(layer)

    def extra_repr(self) -> str:
        """What the stock layer says of itself, and how its weight is stored."""
        return f"{super().extra_repr()}, native"

    def addresses(self) -> tuple[int, ...]:
        """The fields of Weight in native/vectors.h: codes, indices or values; table, scale and shift."""
        table = self.table
        with torch._C.DisableTorchFunctionSubclass():  # Codes answer ten times as fast
            is_int8, codes = self.codes.dtype == torch.int8, self.codes.data_ptr()
        values = (self.scale.data_ptr(), 0 if self.shift is None else self.shift.data_ptr())
        if table is not None:
            return 0, codes, 0, table.data_ptr(), *values
        return (codes, 0, 0, 0, *values) if is_int8 else (0, 0, codes, 0, *values)

    def _stored_codes(self, codes: Tensor) -> Tensor:
        flat = codes.flatten(1)  # (out, elements of a channel)
        if self.packs_rows:
            return self.packing.pack(flat).unflatten(0, (-1, PACK)).transpose(1, 2).contiguous()
        return F.pad(self.packing.pack(flat.t()), (0, round_up(len(flat)) - len(flat))).contiguous()

    def _stored_values(self, values: Tensor) -> Tensor:
        out = self.shape[0]
        values = values.flatten().expand(out)
        return (
            self.packing.pack(values)
            if self.packs_rows
            else F.pad(values, (0, round_up(out) - out)).contiguous()
        )

    def _natural_codes(self, codes: Tensor) -> Tensor:
        if self.packs_rows:
            return self.packing.unpack(codes.transpose(1, 2).flatten(0, 1))
        return self.packing.unpack(codes).t()[: self.shape[0]]

    def _natural_values(self, values: Tensor) -> Tensor:
        return self.packing.unpack(values) if self.packs_rows else values[: self.shape[0]]

"""How the native blocks store frozen weights: channels in sixteens, groups of a norm never astride."""

import math
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
        return packed[(self.channel_of_lane() >= 0).nonzero()[:, 0].to(packed.device)]


class PackedWeight(nn.Module):
    """A frozen weight in the order in which the native blocks read it; its fields are FrozenWeight's.

    `rows` packs its output channels: codes are (lanes / 16, elements of a channel, 16). Otherwise `columns`
    packs the input channels of a 1x1 convolution: codes are (lanes, out), out rounded up to 16.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    table: Tensor | None

    def __init__(
        self, layer: nn.Conv2d, *, rows: Packing | None = None, columns: Packing | None = None
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.shape = rows, columns, tuple(layer.weight.shape)
        frozen = FrozenWeight(layer)
        self.register_buffer("codes", self._packed_codes(frozen.codes.flatten(1)), persistent=False)
        for name, values in (("scale", frozen.scale), ("shift", frozen.shift)):
            packed = None if values is None else self._packed_values(values)
            self.register_buffer(name, packed, persistent=False)
        self.register_buffer("table", frozen.table, persistent=False)

    def addresses(self) -> tuple[int, ...]:
        """The fields of Weight in native/vectors.h: codes, indices or values; table, scale and shift."""
        codes, scale, shift, table = self._buffers.values()
        assert codes is not None and scale is not None
        values = (scale.data_ptr(), 0 if shift is None else shift.data_ptr())
        if table is not None:
            return 0, codes.data_ptr(), 0, table.data_ptr(), *values
        if codes.dtype == torch.int8:
            return codes.data_ptr(), 0, 0, 0, *values
        return 0, 0, codes.data_ptr(), 0, *values

    def unpacked(self) -> Tensor:
        """The weight in floating point, in the layer's shape."""
        codes, scale, shift = self.codes, self.scale, self.shift
        if self.rows:
            rows = self.rows
            codes = rows.unpack(codes.transpose(1, 2).flatten(0, 1))  # (out, elements)
            scale, shift = (v if v is None else rows.unpack(v) for v in (scale, shift))
        else:
            assert self.columns
            codes = self.columns.unpack(codes).t()[: self.shape[0]]
            scale, shift = (v if v is None else v[: self.shape[0]] for v in (scale, shift))
        assert scale is not None
        values = codes if self.table is None else self.table[codes.long()]
        weight = values * scale[:, None]
        return (weight if shift is None else weight + shift[:, None]).reshape(self.shape)

    def _packed_codes(self, codes: Tensor) -> Tensor:  # (out, elements of a channel)
        if self.rows:
            return self.rows.pack(codes).unflatten(0, (-1, PACK)).transpose(1, 2).contiguous()
        assert self.columns
        return F.pad(self.columns.pack(codes.t()), (0, round_up(len(codes)) - len(codes))).contiguous()

    def _packed_values(self, values: Tensor) -> Tensor:
        out = self.shape[0]
        values = values.flatten().expand(out)
        return self.rows.pack(values) if self.rows else F.pad(values, (0, round_up(out) - out)).contiguous()

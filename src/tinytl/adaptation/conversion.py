"""From BatchNorm to GroupNorm and weight standardisation, a layer at a time.

Converted all at once a network forgets what it knew: a standardised depthwise filter has no response to
a constant, so the scales of all maps behind it change. Converted from the input on, one norm with the
convolutions before it at a time, what follows is still the teacher and says what it needs.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from tinytl.networks.norms import WeightStandardizedConv2d, standardize
from tinytl.weights.checkpoints import canonical

LARGEST_SCALE = 20.0  # of a norm; a dead channel would ask for any


@dataclass
class Unit:
    """A norm and the convolutions before it, by their names in the student."""

    norm: str
    final_norm: nn.GroupNorm  # what it becomes
    target_std: Tensor  # of the teacher's norm's output, per channel, shape (C,)
    target_mean: Tensor
    convs: dict[str, WeightStandardizedConv2d] = field(default_factory=dict)  # what they become

    def layers(self) -> list[nn.Module]:
        """All that it becomes."""
        return [self.final_norm, *self.convs.values()]


class Conversion(nn.Module):
    """A student of norm=gn that begins as its teacher and is converted unit by unit, in place.

    `teacher` and `student` are the same timm model with the same weights, the student with GroupNorm and
    weight standardisation and possibly with lite residual modules, which the teacher need not have.
    `images` (N, 3, R, R) show both what maps look like. Both networks must be in evaluation mode.
    `learned` are the parameters of what is there and of what will be.
    """

    images: Tensor

    def __init__(self, teacher: nn.Module, student: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.student, self.converted = student, 0
        self.names = {canonical(f"{name}.")[:-1]: name for name, _ in student.named_modules()}
        self.units = list(self._units(teacher, images))
        # modules and buffers of this one, so that they move to another device with it
        self.register_buffer("images", images, persistent=False)
        self.later = nn.ModuleList([layer for unit in self.units for layer in unit.layers()])
        final = list(student.parameters())
        for unit in self.units:
            self._install(unit.norm, copy.deepcopy(teacher.get_submodule(canonical(f"{unit.norm}.")[:-1])))
            for name, conv in unit.convs.items():
                self._install(name, _plain(conv))
        self.learned = list({id(p): p for p in [*final, *student.parameters()]}.values())

    def _units(self, teacher: nn.Module, images: Tensor) -> Iterator[Unit]:
        convs: dict[str, WeightStandardizedConv2d] = {}
        for name, std, mean in _in_order(teacher, images):
            own = self.names[name]
            layer: Any = self.student.get_submodule(own)
            if std is None:
                if isinstance(layer, WeightStandardizedConv2d):
                    convs[own] = layer
            else:
                yield Unit(own, layer, std, mean, convs)
                convs = {}

    def _install(self, name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.student.get_submodule(parent), child, layer)

    @torch.no_grad()
    def convert_up_to(self, count: int) -> list[nn.Parameter]:
        """Convert units until `count` are; return the parameters whose values are new."""
        begun = self.units[self.converted : count]
        for unit in begun:
            for name, conv in unit.convs.items():
                conv.weight.copy_(standardize(conv.weight) / conv.weight[0].numel() ** 0.5)
                self._install(name, conv)
            self._install(unit.norm, unit.final_norm)
        if begun:
            self._fit_scales(begun)
        self.converted = max(self.converted, count)
        return [p for unit in begun for layer in unit.layers() for p in layer.parameters()]

    def _fit_scales(self, units: list[Unit]) -> None:
        """Give the norms' outputs the teacher's mean and deviation per channel, one after the other."""

        def fit(unit: Unit, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            norm = unit.final_norm
            normed = F.group_norm(inputs[0], norm.num_groups, eps=norm.eps)
            std, mean = torch.std_mean(normed, dim=(0, 2, 3))  # (C,)
            target_std, target_mean = unit.target_std.to(std.device), unit.target_mean.to(std.device)
            norm.weight.copy_((target_std / (std + norm.eps)).clamp(max=LARGEST_SCALE))
            norm.bias.copy_(target_mean - norm.weight * mean)

        handles = [unit.final_norm.register_forward_pre_hook(partial(fit, unit)) for unit in units]
        self.student(self.images)
        for handle in handles:
            handle.remove()


def _plain(conv: Any) -> nn.Conv2d:
    """The convolution without standardisation; the weight is shared."""
    kind: Any = Conv2dSame if conv.same else nn.Conv2d
    layer = kind(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, bias=False, device="meta",
    )  # fmt: skip
    layer.weight = conv.weight
    return layer


@torch.no_grad()
def _in_order(teacher: nn.Module, images: Tensor) -> list[tuple[str, Any, Any]]:
    """(name, None, None) of every convolution and (name, std, mean) of every BatchNorm's output, as called.

    The output is that of the norm itself, before an activation that timm puts into it.
    """
    calls: list[tuple[str, Any, Any]] = []

    def note(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d):
            calls.append((name, None, None))
            return
        normed = F.batch_norm(
            inputs[0], layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
        )
        calls.append((name, *torch.std_mean(normed, dim=(0, 2, 3))))

    handles = [
        layer.register_forward_pre_hook(partial(note, name))
        for name, layer in teacher.named_modules()
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
    ]
    teacher(images)
    for handle in handles:
        handle.remove()
    return calls

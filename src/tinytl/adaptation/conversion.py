"""Convert a network from BatchNorm to GroupNorm and weight standardisation, a layer at a time.

Converted all at once, a network forgets what it knew: a standardised depthwise filter does not respond to a
constant, so that the scales of all maps after it change. Therefore norms are converted one at a time, with
the convolutions before them, from the input on; the layers that follow are still the teacher's.
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
from tinytl.weights.tensor_names import canonical_module

LARGEST_SCALE = 20.0  # limits a norm's scale, which would otherwise be infinite in a dead channel


@dataclass
class Unit:
    """A norm and the convolutions before it: their names in the student, and the layers to replace them."""

    norm: str
    final_norm: nn.GroupNorm
    target_std: Tensor  # per channel, of the output of the teacher's norm, (C,)
    target_mean: Tensor  # likewise
    convs: dict[str, WeightStandardizedConv2d] = field(default_factory=dict)  # name -> final convolution

    def layers(self) -> list[nn.Module]:
        """The final layers."""
        return [self.final_norm, *self.convs.values()]


class Conversion(nn.Module):
    """A student with norm=gn that begins with its teacher's layers and is converted unit by unit, in place.

    `teacher` and `student` are the same timm model with the same weights; the student has GroupNorm and
    weight standardisation, and may have lite residual modules, which the teacher need not have. `images`
    (N, 3, R, R) serve to measure typical maps. Both networks must be in evaluation mode. `learned` are
    the student's parameters, before and after conversion.
    """

    images: Tensor

    def __init__(self, teacher: nn.Module, student: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.student, self.converted = student, 0
        # Names of modules: in the teacher -> in the student.
        self.names = {canonical_module(name): name for name, _ in student.named_modules()}
        self.units = list(self._units(teacher, images))
        # Registered as buffer and modules, so that they move to another device with this module.
        self.register_buffer("images", images, persistent=False)
        self.later = nn.ModuleList([layer for unit in self.units for layer in unit.layers()])
        final_parameters = list(student.parameters())
        for unit in self.units:
            self._install(unit.norm, copy.deepcopy(teacher.get_submodule(canonical_module(unit.norm))))
            for name, conv in unit.convs.items():
                self._install(name, _plain(conv))
        self.learned = list({id(p): p for p in [*final_parameters, *student.parameters()]}.values())

    def _units(self, teacher: nn.Module, images: Tensor) -> Iterator[Unit]:
        """Yield the units in the order in which the teacher calls their norms."""
        convs: dict[str, WeightStandardizedConv2d] = {}
        for name, std, mean in _layers_in_order(teacher, images):
            student_name = self.names[name]
            layer: Any = self.student.get_submodule(student_name)
            if std is None:
                if isinstance(layer, WeightStandardizedConv2d):
                    convs[student_name] = layer
            else:
                yield Unit(student_name, layer, std, mean, convs)
                convs = {}

    def _install(self, name: str, layer: nn.Module) -> None:
        """Put a layer into the student in place of the one of this name."""
        parent, _, child = name.rpartition(".")
        setattr(self.student.get_submodule(parent), child, layer)

    @torch.no_grad()
    def convert_up_to(self, count: int) -> list[nn.Parameter]:
        """Convert units until `count` are converted; return the parameters of the new layers."""
        new_units = self.units[self.converted : count]
        for unit in new_units:
            for name, conv in unit.convs.items():
                conv.weight.copy_(standardize(conv.weight) / conv.weight[0].numel() ** 0.5)
                self._install(name, conv)
            self._install(unit.norm, unit.final_norm)
        if new_units:
            self._fit_scales(new_units)
        self.converted = max(self.converted, count)
        return [p for unit in new_units for layer in unit.layers() for p in layer.parameters()]

    def _fit_scales(self, units: list[Unit]) -> None:
        """Give the norms' outputs the teacher's mean and standard deviation per channel, in forward order."""

        def fit(unit: Unit, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            """Set a norm's scale and shift by its input (N, C, H, W), before it computes its output."""
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
    """Return the convolution without standardisation, sharing its weight."""
    kind: Any = Conv2dSame if conv.same else nn.Conv2d
    layer = kind(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, bias=False, device="meta",
    )  # fmt: skip
    layer.weight = conv.weight
    return layer


@torch.no_grad()
def _layers_in_order(teacher: nn.Module, images: Tensor) -> list[tuple[str, Any, Any]]:
    """List (name, None, None) of convolutions and (name, std, mean) of BatchNorm outputs, in call order.

    The output is that of the norm itself, before any activation that timm builds into it.
    """
    calls: list[tuple[str, Any, Any]] = []

    def note(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        """Append the call of a layer to `calls`."""
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

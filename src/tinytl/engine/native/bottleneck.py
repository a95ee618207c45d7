"""The inverted bottleneck in one native call a direction, an image at a time; see native/bottleneck.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, without_autocast
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.convolutions import is_depthwise, is_pointwise
from tinytl.engine.hooks import refuse_hooks
from tinytl.engine.kernels import Kernels
from tinytl.engine.native.bottleneck_calls import BottleneckCalls, Stored
from tinytl.engine.native.bottleneck_sizes import HELD_BYTES, SLICE_BYTES, BottleneckSizes
from tinytl.engine.native.convolution import Convolution, is_plain
from tinytl.engine.native.device import check_device, is_native
from tinytl.engine.native.norms import (
    LINEAR,
    Activation,
    NativeNorm,
    StoredStatistics,
    channels_per_group,
    is_plain_norm,
    native_activation,
)
from tinytl.engine.native.packing import (
    MAX_UNIT,
    Packing,
)
from tinytl.engine.native.squeeze_excitation import NativeSqueezeExcitation
from tinytl.engine.native.trained_weight import (
    TrainedWeight,
    native_weight,
)
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import compute_bottleneck, is_traced
from tinytl.errors import UserError

MAX_KERNEL = 11  # of the depthwise convolution; MAX_KERNEL in native/depthwise.h
CONV_NAMES = ("conv_pw", "conv_dw", "conv_pwl")  # expansion, depthwise convolution, projection


class NativeBottleneck(nn.Module):
    """Replaces an inverted bottleneck; its convolutions and norms keep their names and parameters.

    The expansion is a 1x1 convolution, or the network's stem where stem and first block are taken as one
    bottleneck, or None. `acts` follow the norms but the last. The norm named `outside` stays registered
    where it was, and so does a convolution whose name in `conv_names` is None. It computes float32 and
    float64 on the CPU, and shapes on the meta device.
    """

    def __init__(
        self, expand: nn.Conv2d | None, depthwise: nn.Conv2d, project: nn.Conv2d, norms: dict[str, Any],
        acts: Sequence[Activation], has_skip: bool, keep_projection: bool = True,
        slice_bytes: float = SLICE_BYTES, conv_names: Sequence[str | None] = CONV_NAMES,
        squeeze: Any = None, held_bytes: float = HELD_BYTES,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path: nn.Module | None = None  # drops the residual branch of whole images
        self.has_skip = has_skip
        self.packing = _packing(depthwise, list(norms.values()))
        se = None if squeeze is None else NativeSqueezeExcitation(squeeze, self.packing)
        convs = (expand, depthwise, project)
        self.weights = (
            native_weight(expand, rows=self.packing) if expand else None,
            native_weight(depthwise, rows=self.packing),
            native_weight(project, columns=self.packing),
            *(se.weights if se else (None, None)),
        )  # fmt: skip
        self.trained: tuple[Any, ...] = tuple(
            conv
            for conv in (*convs, *((squeeze.conv_reduce, squeeze.conv_expand) if squeeze else ()))
            if conv is not None and conv.weight.requires_grad
        )
        self.norms = tuple(norms.values())  # after the expansion (if any), depthwise, projection
        holders: list[tuple[str | None, Any]] = [
            (name, conv if isinstance(weight, TrainedWeight) else weight)
            for name, conv, weight in zip(conv_names, convs, self.weights, strict=False)
            if conv is not None
        ]
        self.parts = [(holder, norm) for (_, holder), norm in zip(holders, self.norms, strict=True)]
        self._register(holders, norms, se)
        described = [NativeNorm.of(norm, act) for norm, act in zip(self.norms, (*acts, LINEAR), strict=True)]
        self.in_channels, self.out_channels = (expand or depthwise).in_channels, project.out_channels
        self.sizes = BottleneckSizes(
            self.packing, self.weights, described,
            Convolution.of(expand) if expand else None, Convolution.of(depthwise),
            self.in_channels, self.out_channels, has_skip, slice_bytes, held_bytes,
            None if se is None else se.buffer_size,
        )  # fmt: skip
        self.calls = BottleneckCalls(self.weights, described, se, self.sizes, keep_projection)

    def _register(
        self, convs: Sequence[tuple[str | None, Any]], norms: dict[str, Any],
        squeeze: NativeSqueezeExcitation | None,
    ) -> None:  # fmt: skip
        """Register the parts under their names and in the order of the stock block."""
        self.se = None
        for (conv_name, conv), (norm_name, norm) in zip(convs, norms.items(), strict=True):
            if conv is convs[-1][1] and squeeze is not None:
                self.se = squeeze
            if conv_name is not None:
                self.add_module(conv_name, conv)
            if norm_name != "outside":
                self.add_module(norm_name, norm)

    @staticmethod
    def supports(
        expand: Any, depthwise: Any, project: Any, norms: Sequence[Any], acts: Sequence[Activation | None]
    ) -> bool:
        """Whether a bottleneck of these parts can be computed natively."""
        convs = [conv for conv in (expand, depthwise, project) if conv is not None]
        if not all(map(is_plain, convs)) or not all(map(is_plain_norm, norms)) or None in acts:
            return False
        return (
            len(norms) == len(convs) == len(acts) + 1
            and is_pointwise(project)
            and (expand is None or expand.groups == 1)
            and all(conv.kernel_size[0] % 2 for conv in convs)
            and is_depthwise(depthwise)
            and depthwise.kernel_size[0] <= MAX_KERNEL
            and _packing(depthwise, norms).unit_lanes <= MAX_UNIT
        )

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "NativeBottleneck | None":
        """The lean layer for an inverted bottleneck; None for anything else."""
        parts = BottleneckParts.of(module, plan, kernels)
        return None if parts is None else cls.of_parts(parts, plan, kernels)

    @classmethod
    def of_parts(
        cls, parts: BottleneckParts, plan: EnginePlan, kernels: Kernels
    ) -> "NativeBottleneck | None":
        """The lean layer for these parts; None where the native code cannot compute them."""
        if not is_native(kernels, parts.convs["project"]):
            return None
        convs: Any = parts.convs
        expand, depthwise, project = convs.get("expand"), convs["depthwise"], convs["project"]
        acts: list[Any] = [native_activation(norm) for part, norm in parts.norms.items() if part != "project"]
        if not cls.supports(expand, depthwise, project, list(parts.norms.values()), acts):
            return None
        if parts.squeeze is not None and not NativeSqueezeExcitation.supports(parts.squeeze):
            return None
        norms = {parts.norm_names[part] or "outside": norm for part, norm in parts.norms.items()}
        block = cls(
            expand, depthwise, project, norms, acts, parts.has_skip, plan.keep_projection,
            min(SLICE_BYTES, plan.slice_bytes),
            [parts.conv_names.get(part) for part in ("expand", "depthwise", "project")],
            parts.squeeze,
        )  # fmt: skip
        block.drop_path = parts.drop_path
        return block

    def extra_repr(self) -> str:
        """What the block computes besides its norms."""
        sizes = f"{self.in_channels}, {self.out_channels}, stride={self.sizes.filter.stride}"
        return f"{sizes}, has_skip={self.has_skip}, native"

    def _replicate_for_data_parallel(self) -> Any:
        raise UserError("engine=lean: DataParallel cannot copy the network; use DistributedDataParallel")

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute in the type of the norms.

        Under autocast, what is kept and what is returned have autocast's type.
        """
        drops = self.drop_path is not None and self.drop_path.training
        adds_input = self.has_skip and not drops
        if is_traced(x):
            out = compute_bottleneck(self, x, adds_input)
            return self.drop_path(out) + x if self.drop_path is not None and drops else out
        tensors, dtype = self.tensors(), autocast_dtype(x)
        check_device(x, tensors[0].dtype)
        check_dtype(x, tensors[0].dtype)
        refuse_hooks(self.layers())
        with without_autocast(x):
            stored = self.stored_statistics()
            out = _Bottleneck.apply(x.contiguous(), self, dtype, stored, adds_input, *tensors)
        return self.drop_path(out) + x if self.drop_path is not None and drops else out

    def layers(self) -> list[nn.Module]:
        """The modules that the block computes without calling them."""
        squeeze = () if self.se is None else self.se.layers()
        return [*squeeze, *(layer for part in self.parts for layer in part)]

    def tensors(self) -> list[Tensor]:
        """Scale and shift of every norm, biases of squeeze and excitation, then the weights that train."""
        affine = [tensor for norm in self.norms for tensor in (norm.weight, norm.bias)]
        biases = [] if self.se is None else self.se.biases()
        return [*affine, *biases, *(conv.weight.contiguous() for conv in self.trained)]  # channels last

    def stored_statistics(self) -> list[StoredStatistics | None]:
        """The stored statistics of every norm that has them."""
        return [StoredStatistics.of(norm) for norm in self.norms]


class _Bottleneck(torch.autograd.Function):
    """The block as one function: it keeps its input, statistics and perhaps the normalised projection."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: NativeBottleneck, dtype: torch.dtype, stored: Stored, adds_input: bool,
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        out, normed, statistics = block.calls.compute(
            x.to(tensors[0].dtype), tensors, stored, needs, adds_input
        )
        ctx.block, ctx.stored, ctx.adds_input = block, stored, adds_input
        ctx.save_for_backward(x, None if normed is None else normed.to(dtype), statistics, *tensors)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the trained tensors, by one native call."""
        x, normed, statistics, *tensors = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        dtype = tensors[0].dtype
        grad_x, gradients = ctx.block.calls.gradients(
            x.to(dtype), grad.to(dtype).contiguous(), None if normed is None else normed.to(dtype),
            statistics, tensors, ctx.stored, needs, ctx.adds_input,
        )  # fmt: skip
        return None if grad_x is None else grad_x.to(x.dtype), None, None, None, None, *gradients


def _packing(depthwise: nn.Conv2d, norms: Sequence[Any]) -> Packing:
    """Pack the expanded channels for the norms before the projection."""
    groups = (max(1, channels_per_group(norm)) for norm in list(norms)[:-1])
    return Packing.of(depthwise.out_channels, *groups)

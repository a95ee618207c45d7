"""Norm layers, which use the statistics of the batch, of channel groups, or stored ones.

Where timm takes the norm as a constructor argument (`norm_layer=`), it is given there; in other backbones
layers are replaced. Weight standardisation cannot be passed to a constructor, so convolutions are replaced by
ones that standardise, under the same name and with the same weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, GroupNormAct, pad_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.errors import UserError

NormName = Literal["bn", "gn", "bn_frozen", "native"]
NORM_NAMES: tuple[NormName, ...] = ("bn", "gn", "bn_frozen", "native")

GROUP_SIZE = 8  # channels per group (TinyTL, section 4.1)
WS_EPS = 1e-5  # Qiao et al., "Weight Standardization", arXiv 1903.10520; TinyTL's recipe


def group_count(channels: int, group_size: int = GROUP_SIZE) -> int:
    """Number of groups of `group_size` channels, or of the largest smaller size that divides `channels`."""
    size = next(size for size in range(min(group_size, channels), 0, -1) if channels % size == 0)
    return channels // size


class GroupNorm(nn.GroupNorm):
    """GroupNorm with a group size; the channels are the first argument, as timm calls its `norm_layer`.

    Where timm needs norm and activation in one layer, it recognises this class by its name and uses
    its own GroupNormAct with the same keywords.
    """

    def __init__(
        self,
        num_channels: int,
        group_size: int = GROUP_SIZE,
        eps: float = 1e-5,
        affine: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            group_count(num_channels, group_size), num_channels, eps=eps, affine=affine, **kwargs
        )


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that uses the stored statistics where a channel has one value only.

    A lite residual may see a 1x1 map at batch size 1, and one value has no variance.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def standardize(weight: Tensor) -> Tensor:
    """Standardise the weight of a convolution, (out, in / groups, kh, kw), per output channel."""
    std, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)  # (out, 1, 1, 1)
    return (weight - mean) / (std + WS_EPS)


class WeightStandardizedConv2d(nn.Conv2d):
    """Convolution whose weight is standardised over (in, kh, kw) before each use.

    w = (w - mean) / (std + 1e-5) with the unbiased standard deviation. `same` pads as TensorFlow does,
    for timm's tf_ models.
    """

    same: bool = False

    def standardized(self, weight: Tensor) -> Tensor:
        """Return the standardised weight; an engine's layer may compute it in its own way."""
        return standardize(weight)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        if self.same:
            input = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation))
        return self._conv_forward(input, self.standardized(self.weight), self.bias)


def batch_norm_eps(network: nn.Module) -> float | None:
    """Epsilon of the network's first BatchNorm; None if it has none."""
    return next((m.eps for m in network.modules() if isinstance(m, _BatchNorm)), None)


def norm_layer(norm: NormName, eps: float) -> Callable[..., nn.Module]:
    """Return a constructor of norm layers that takes the number of channels.

    `bn` and `bn_frozen` are the same layer; its mode decides which statistics it uses in training
    (`tinytl.methods.set_train_mode`).
    """
    if norm == "gn":
        return partial(GroupNorm, group_size=GROUP_SIZE, eps=eps)
    return partial(BatchNorm2d, eps=eps)


def replace_batch_norm(network: nn.Module) -> None:
    """Replace every BatchNorm2d by GroupNorm, for backbones whose constructor takes no norm."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _group_norm_like(child))


def _group_norm_like(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    """A GroupNorm for the same channels, with the activation that timm may have built into the BatchNorm."""
    if not isinstance(norm, BatchNormAct2d):
        return GroupNorm(norm.num_features, eps=norm.eps, affine=norm.affine)
    layer: Any = GroupNormAct(
        norm.num_features, group_count(norm.num_features), eps=norm.eps, affine=norm.affine
    )
    layer.drop, layer.act = norm.drop, norm.act
    return layer


def standardize_weights(network: nn.Module) -> None:
    """Give every bias-free convolution weight standardisation, in place, keeping its parameters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _standardizable(child):
                setattr(parent, name, _standardized(child))


def _standardizable(module: nn.Module) -> bool:
    """Whether it is a bias-free convolution; a single weight per output channel has no standard deviation."""
    return type(module) in (nn.Conv2d, Conv2dSame) and module.bias is None and module.weight[0].numel() > 1  # type: ignore[index]


def _standardized(conv: Any) -> WeightStandardizedConv2d:
    """The convolution with weight standardisation, sharing its weight."""
    layer = WeightStandardizedConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, bias=False, padding_mode=conv.padding_mode, device="meta",
    )  # fmt: skip
    layer.weight = conv.weight
    layer.same = isinstance(conv, Conv2dSame)
    return layer


def check_norm_name(norm: str) -> None:
    """Raise UserError for an unknown norm."""
    if norm not in NORM_NAMES:
        raise UserError(f"norm={norm}: unknown; one of {', '.join(NORM_NAMES)}")


def check_norm(norm: NormName, name: str, has_batch_norm: bool) -> None:
    """Raise UserError where `norm` is unknown or needs a BatchNorm that the backbone does not have."""
    check_norm_name(norm)
    if norm != "native" and not has_batch_norm:
        raise UserError(f"norm={norm}: {name} has no BatchNorm; norm=native keeps its own layers")

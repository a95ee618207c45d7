"""The parts of an inverted bottleneck, by what they do, for the lean layers that compute it as one.

Each lean layer decides for itself which parts it can compute; the native one can compute more than the sliced
one.
"""

from dataclasses import dataclass
from typing import Any

from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from tinytl.engine.convolutions import is_depthwise, is_pointwise, is_square, pads_as_tensorflow
from tinytl.engine.kernels import LINEAR, Kernels
from tinytl.engine.norms import LeanGroupNorm, StoredBatchNorm, lean_norm
from tinytl.engine.plan import EnginePlan
from tinytl.networks.blocks import EXTRAS, INVERTED, layer_names

LeanNorm = StoredBatchNorm | LeanGroupNorm
# Networks in which the first block follows the stem's norm, with nothing in between.
STEMMED = (EfficientNet, MobileNetV3)


@dataclass(frozen=True)
class BottleneckParts:
    """Convolutions and the norms after them.

    The expansion is a 1x1 convolution, or the network's stem where stem and first block are taken as one
    bottleneck. Without an expansion the block is a depthwise separable convolution.
    """

    convs: dict[str, nn.Conv2d]  # by what they do: [expand,] depthwise, project
    norms: dict[str, LeanNorm]  # by the convolution that they follow; each with its activation
    conv_names: dict[str, str | None]  # in the block; None: it stays where it was, outside
    norm_names: dict[str, str | None]  # likewise
    has_skip: bool
    drop_path: nn.Module | None = None  # drops the residual branch of whole images
    squeeze: nn.Module | None = None  # squeeze and excitation, named `se`, before the projection

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "BottleneckParts | None":
        """The parts of a timm block; None where it holds more than a lean layer computes."""
        if type(module) not in INVERTED:  # nor one derived from them: it may compute something else
            return None
        block: Any = module
        names = layer_names(block)
        convs = {part: getattr(block, conv) for part, (conv, _) in names.items()}
        norms = {part: lean_norm(getattr(block, norm), plan, kernels) for part, (_, norm) in names.items()}
        extras = [getattr(block, name, None) for name in EXTRAS if name != "se"]
        known = (
            all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
            and all(is_square(conv) for conv in convs.values())
            and all(norm is not None and norm.drop is None for norm in norms.values())
            and norms["project"].clamp == LINEAR  # type: ignore[union-attr]
            and all(is_pointwise(conv) for part, conv in convs.items() if part != "depthwise")
            and is_depthwise(convs["depthwise"])
        )
        if not known:
            return None
        drop_path, squeeze = getattr(block, "drop_path", None), getattr(block, "se", None)
        return cls(
            convs, norms,  # type: ignore[arg-type]
            {part: conv for part, (conv, _) in names.items()},
            {part: norm for part, (_, norm) in names.items()},
            block.has_skip,
            None if isinstance(drop_path, nn.Identity) or not block.has_skip else drop_path,
            None if isinstance(squeeze, nn.Identity) else squeeze,
        )  # fmt: skip

    @classmethod
    def of_stem(cls, network: Any, plan: EnginePlan, kernels: Kernels) -> "BottleneckParts | None":
        """The parts of a network's stem and of the depthwise separable block after it, as one bottleneck."""
        block = first_block(network) if type(network) in STEMMED else None
        if type(block) is not DepthwiseSeparableConv or block.has_skip:
            return None
        stem, parts = network.conv_stem, cls.of(block, plan, kernels)
        lean = lean_norm(network.bn1, plan, kernels)
        if parts is None or lean is None or lean.drop is not None:
            return None
        if not is_square(stem) or stem.groups > 1:
            return None
        return cls(
            {"expand": stem, **parts.convs},  # type: ignore[dict-item]
            {"expand": lean, **parts.norms},
            {"expand": None, **parts.conv_names},
            {"expand": None, **parts.norm_names},
            has_skip=False,
            squeeze=parts.squeeze,
        )

    @property
    def is_frozen(self) -> bool:
        """Whether no convolution trains."""
        return not any(conv.weight.requires_grad for conv in self.convs.values())

    @property
    def has_clamps(self) -> bool:
        """Whether every activation is a clamp or none."""
        return all(norm.clamp is not None for norm in self.norms.values())

    @property
    def pads_evenly(self) -> bool:
        """Whether every convolution pads all sides alike."""
        return not any(pads_as_tensorflow(conv) for conv in self.convs.values())


def first_block(network: Any) -> Any:
    """The first block of the first stage of such a network; None where there is none."""
    stage = next(iter(network.blocks), None)
    return stage[0] if isinstance(stage, nn.Sequential) and len(stage) else None

"""A timm model of four inverted bottlenecks, for tests in which the size of the network does not matter."""

from functools import partial
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
from timm.models import EfficientNet, build_model_with_cfg, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models._registry import generate_default_cfgs
from torch import nn

TINY = ["model.name=tinytl_tiny", "model.checkpoint=null"]
BLOCKS = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e3_c16"], ["ir_r1_k5_s2_e3_c24"]]

# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs(
    {
        "tinytl_tiny": {
            "num_classes": 1000, "input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
            "first_conv": "conv_stem", "classifier": "classifier",
        }
    }
)  # fmt: skip


@register_model
def tinytl_tiny(pretrained: bool = False, norm_layer: Any = None, **kwargs: Any) -> EfficientNet:
    """ReLU6, as in ProxylessNAS: a block without expansion, a shortcut, strides of 1 and 2."""
    return build_model_with_cfg(  # type: ignore[return-value]
        EfficientNet, "tinytl_tiny", pretrained, block_args=decode_arch_def(BLOCKS), stem_size=8,
        fix_stem=True, num_features=64, act_layer=kwargs.pop("act_layer", None) or nn.ReLU6,
        norm_layer=norm_layer or partial(nn.BatchNorm2d, eps=1e-3), **kwargs,
    )  # fmt: skip

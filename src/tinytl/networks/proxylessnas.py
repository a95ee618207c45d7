"""ProxylessNAS (Cai, Zhu, Han, ICLR 2019, arXiv 1812.00332) as timm models; timm itself has none.

The networks consist of inverted bottlenecks, so each is an EfficientNet of timm. Tools made for timm
work on them, and tinytl needs no second block type.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.models import EfficientNet, build_model_with_cfg, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models._registry import generate_default_cfgs
from torch import nn

BN_EPS = 1e-3

# One block: (kernel size, expand ratio); None: an empty block, which the search left out. The
# published checkpoints number the empty blocks too.
Block = tuple[int, int] | None


@dataclass(frozen=True)
class ProxylessNAS:
    """Channels of stem, first block and head; stages of (channels, stride of the first block, blocks)."""

    stem: int
    first: int
    stages: tuple[tuple[int, int, tuple[Block, ...]], ...]
    head: int

    def definition(self) -> list[list[str]]:
        """The network in timm's block notation, one list of blocks per stage."""
        stages = [[f"ds_r1_k3_s1_c{self.first}"]]
        for channels, stride, blocks in self.stages:
            kept = [block for block in blocks if block]
            strides = [stride] + [1] * (len(kept) - 1)
            stages.append(
                [f"ir_r1_k{k}_s{s}_e{e}_c{channels}" for s, (k, e) in zip(strides, kept, strict=True)]
            )
        return stages

    def block_names(self) -> Iterator[tuple[int, str]]:
        """(number in the published checkpoints, name in the timm network) of every block."""
        yield 0, "blocks.0.0"
        number = 1
        for stage, (_, _, blocks) in enumerate(self.stages, start=1):
            position = 0
            for block in blocks:
                if block:
                    yield number, f"blocks.{stage}.{position}"
                    position += 1
                number += 1


def _mobile(stem: int, first: int, channels: tuple[int, ...], head: int) -> ProxylessNAS:
    """ProxylessNAS-Mobile with these channels, one number for each stage."""
    a, b, c, d, e, f = channels
    return ProxylessNAS(
        stem,
        first,
        (
            (a, 2, ((5, 3), (3, 3), None, None)),
            (b, 2, ((7, 3), (3, 3), (5, 3), (5, 3))),
            (c, 2, ((7, 6), (5, 3), (5, 3), (5, 3))),
            (d, 1, ((5, 6), (5, 3), (5, 3), (5, 3))),
            (e, 2, ((7, 6), (7, 6), (7, 3), (7, 3))),
            (f, 1, ((7, 6),)),
        ),
        head,
    )


ARCHITECTURES = {
    "proxylessnas_mobile": _mobile(32, 16, (32, 40, 80, 96, 192, 320), 1280),
    "proxylessnas_w03": _mobile(16, 8, (16, 16, 24, 32, 64, 96), 384),
    "proxylessnas_cpu": ProxylessNAS(
        40,
        24,
        (
            (32, 2, ((3, 6), (3, 3), (3, 3), (3, 3))),
            (48, 2, ((3, 6), (3, 3), (3, 3), (5, 3))),
            (88, 2, ((3, 6), None, None, (3, 3))),
            (104, 1, ((5, 6), (3, 3), (3, 3), (3, 3))),
            (216, 2, ((5, 6), (5, 3), (5, 3), (3, 3))),
            (360, 1, ((5, 6),)),
        ),
        1432,
    ),
    "proxylessnas_gpu": ProxylessNAS(
        40,
        24,
        (
            (32, 2, ((5, 3), None, None, None)),
            (56, 2, ((7, 3), None, None, (3, 3))),
            (112, 2, ((7, 6), None, None, (5, 3))),
            (128, 1, ((5, 6), None, (3, 3), (5, 3))),
            (256, 2, ((7, 6), (7, 6), (7, 6), (5, 6))),
            (432, 1, ((7, 6),)),
        ),
        1728,
    ),
}


def _cfg(**overrides: Any) -> dict[str, Any]:
    # No URL: the address of the published weights has changed before; checkpoint= names them instead.
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv_stem",
        "classifier": "classifier",
        **overrides,
    }


# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs(
    {
        "proxylessnas_mobile": _cfg(),
        "proxylessnas_cpu": _cfg(),
        "proxylessnas_gpu": _cfg(),
        "proxylessnas_w03": _cfg(input_size=(3, 176, 176), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    }
)


def _create(name: str, pretrained: bool, norm_layer: Any = None, **kwargs: Any) -> EfficientNet:
    """Create the network by timm's own machinery, as its own models are created."""
    architecture = ARCHITECTURES[name]
    return build_model_with_cfg(  # type: ignore[return-value]
        EfficientNet,
        name,
        pretrained,
        block_args=decode_arch_def(architecture.definition()),
        stem_size=architecture.stem,
        fix_stem=True,
        num_features=architecture.head,
        act_layer=kwargs.pop("act_layer", None) or nn.ReLU6,
        norm_layer=norm_layer or partial(nn.BatchNorm2d, eps=BN_EPS),
        **kwargs,
    )


@register_model
def proxylessnas_mobile(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """ProxylessNAS-Mobile, the backbone of the TinyTL paper; 4,080,512 parameters with 1,000 classes."""
    return _create("proxylessnas_mobile", pretrained, **kwargs)


@register_model
def proxylessnas_cpu(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """ProxylessNAS-CPU; 4,361,648 parameters with 1,000 classes."""
    return _create("proxylessnas_cpu", pretrained, **kwargs)


@register_model
def proxylessnas_gpu(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """ProxylessNAS-GPU; 7,119,848 parameters with 1,000 classes."""
    return _create("proxylessnas_gpu", pretrained, **kwargs)


@register_model
def proxylessnas_w03(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """ProxylessNAS-Mobile at width 0.3, trained at 176 px with mean = std = 0.5."""
    return _create("proxylessnas_w03", pretrained, **kwargs)

"""Networks of TinyTL that are specialised for a data set, built from their `net.config`.

They consist of timm's blocks in timm's EfficientNet wherever these compute the same, so that the lean engine
and everything else that knows timm's networks works on them.
"""

from collections.abc import Iterator

from timm.models import EfficientNet
from timm.models._efficientnet_builder import decode_arch_def, efficientnet_init_weights
from torch import nn

from tinytl.errors import UserError
from tinytl.networks.net_config import Block, NetConfig
from tinytl.networks.norms import NormName
from tinytl.networks.quantize import keep_rounded
from tinytl.networks.specialized_layers import Layers

MODEL = "tinytl_specialized"  # the name of all these networks, as `model`
CHILDREN = frozenset(("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"))  # of the network
IMAGES = {
    "num_classes": 1000, "input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "first_conv": "conv_stem", "classifier": "classifier", "architecture": MODEL,
}  # fmt: skip


def build(config: NetConfig, norm: NormName, num_classes: int, dropout: float) -> EfficientNet:
    """Build the network with random weights, without weight standardisation.

    Raises UserError for another kind of norm than the one it is described with.
    """
    _check_norm(config, norm)
    make = Layers(config)
    network = EfficientNet(
        decode_arch_def([["ds_r1_k3_s1_c8"]]),  # replaced below
        num_classes,
        num_features=config.features,
        drop_rate=dropout,
    )
    network.conv_stem, network.bn1 = make.conv_and_norm(config.stem, "first_conv")
    network.conv_head, network.bn2 = nn.Identity(), nn.Identity()
    if config.mix is not None:
        network.conv_head, network.bn2 = make.conv_and_norm(config.mix, "feature_mix_layer")
    stages = [nn.Sequential(*map(make.block, stage)) for stage in _stages(config)]
    network.blocks = nn.Sequential(*stages)
    efficientnet_init_weights(network)
    for name, block in block_names(config):
        if block.lite is not None:
            stage, _, position = name.removeprefix("blocks.").partition(".")
            stages[int(stage)][int(position)] = make.with_lite(stages[int(stage)][int(position)], block.lite)
    network.pretrained_cfg = network.default_cfg = dict(IMAGES)  # type: ignore[assignment]
    keep_rounded(network)
    return network


def block_names(config: NetConfig) -> Iterator[tuple[str, Block]]:
    """Yield (name in the network, block)."""
    for stage, blocks in enumerate(_stages(config)):
        for position, block in enumerate(blocks):
            yield f"blocks.{stage}.{position}", block


def _stages(config: NetConfig) -> list[list[Block]]:
    """The blocks by stages, as timm has them: a stage begins where stride or number of channels change."""
    stages: list[list[Block]] = []
    channels = None
    for block in config.blocks:
        if block.layer.stride > 1 or block.layer.out_channels != channels:
            stages.append([])
        stages[-1].append(block)
        channels = block.layer.out_channels
    return stages


def _check_norm(config: NetConfig, norm: NormName) -> None:
    if config.has_group_norm != (norm == "gn"):
        has, fitting = ("GroupNorm", "gn") if config.has_group_norm else ("BatchNorm", "bn or norm=bn_frozen")
        raise UserError(f"norm={norm}: this network of model={MODEL} has {has}: norm={fitting} fits")

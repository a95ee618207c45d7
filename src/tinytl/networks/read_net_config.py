"""Read the JSON of a `net.config`, and check every entry that decides the network.

A block's convolution is called `conv`, or `mobile_inverted_conv` in older files.
"""

import json
from functools import cache

from timm.layers import make_divisible

from tinytl.errors import UserError
from tinytl.networks.config_fields import Fields
from tinytl.networks.net_config import (
    ACTIVATIONS,
    Block,
    Bottleneck,
    ConvLayer,
    Layer,
    LiteLayer,
    NetConfig,
)
from tinytl.networks.norms import GROUP_SIZE

NAME = "ProxylessNASNets"  # of the only kind of network that is published in this form
UPSAMPLINGS = ("bilinear", "nearest")


@cache
def parse(text: str) -> NetConfig:
    """Read the text of a `net.config`. Raises UserError, one line that names the first wrong entry."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise UserError(f"net.config: no JSON, cut off or damaged ({error})") from error
    top = Fields(plain, "net.config")
    top.one_of("name", (NAME,))
    norm = top.inside("bn")
    group = norm.whole("gn_channel_per_group", None)
    if group not in (None, GROUP_SIZE):
        raise norm.refusal("gn_channel_per_group", f"only groups of {GROUP_SIZE} channels are known here")
    stem = _conv(top.inside("first_conv"), 3)
    blocks, channels = [], stem.out_channels
    for number, entry in enumerate(top.items("blocks")):
        block = _block(entry, number, channels)
        if block is not None:
            blocks.append(block)
            channels = block.layer.out_channels
    mix = None if top.is_none("feature_mix_layer") else _conv(top.inside("feature_mix_layer"), channels)
    features = mix.out_channels if mix else channels
    classifier = top.inside("classifier")
    classifier.one_of("name", ("LinearLayer",))
    classifier.equal("in_features", features)
    return NetConfig(
        norm.number("eps"),
        norm.number("momentum", 0.1),
        group is not None,
        stem,
        tuple(blocks),
        mix,
        features,
    )


def _block(entry: Fields, number: int, channels: int) -> Block | None:
    """Read a block; None where it returns its input."""
    entry.one_of("name", ("ResidualBlock",))
    conv_name = "mobile_inverted_conv" if entry.is_none("conv") else "conv"
    conv, shortcut = _nothing_or(entry, conv_name), _nothing_or(entry, "shortcut")
    identity = shortcut is not None and shortcut.text("name") == "IdentityLayer"
    if conv is not None and conv.text("name") == "IdentityLayer":
        raise conv.refusal("name", "known as a shortcut only")
    if conv is None and (identity or shortcut is None):
        return None
    lite = None
    if conv is not None and conv.text("name") == "LiteResidualModule":
        conv, lite = conv.inside("main"), conv.inside("lite_residual")
    main = None if conv is None else _layer(conv, channels)
    other = None if shortcut is None or identity else _layer(shortcut, channels)
    block = Block(number, main, lite and _lite(lite, main), other, identity)
    if main and other and (main.out_channels, main.stride) != (other.out_channels, other.stride):
        raise entry.refusal("shortcut", "its output does not fit that of the convolution")
    if main and identity and (main.out_channels, main.stride) != (channels, 1):
        raise entry.refusal("shortcut", "the input cannot be added to an output of another size")
    return block


def _nothing_or(entry: Fields, key: str) -> Fields | None:
    """A layer; None where there is none, or one that returns zeros."""
    layer = None if entry.is_none(key) else entry.inside(key)
    return None if layer is None or layer.text("name") == "ZeroLayer" else layer


def _layer(entry: Fields, channels: int) -> Layer:
    """Read a layer that takes maps of so many channels."""
    name = entry.one_of("name", ("ConvLayer", "MBConvLayer", "ReducedMBConvLayer"))
    return _conv(entry, channels) if name == "ConvLayer" else _bottleneck(entry, channels)


def _conv(entry: Fields, channels: int) -> ConvLayer:
    entry.one_of("name", ("ConvLayer",))
    entry.equal("in_channels", channels)
    entry.only("ops_order", "weight_bn_act")
    entry.only("dropout_rate", 0)
    groups = entry.whole("groups", 1)
    if groups > 1:
        entry.only("has_shuffle", False)
    out_channels = entry.whole("out_channels")
    _check_groups(entry, groups, channels, out_channels)
    return ConvLayer(
        channels, out_channels, _kernel_size(entry), entry.whole("stride", 1), entry.whole("dilation", 1),
        groups, entry.flag("bias", False), entry.flag("use_bn", True), entry.flag("use_se", False),
        entry.one_of("act_func", ACTIVATIONS, None),
    )  # fmt: skip


def _bottleneck(entry: Fields, channels: int) -> Bottleneck:
    entry.equal("in_channels", channels)
    ratio, reduced = entry.number("expand_ratio"), entry.text("name") == "ReducedMBConvLayer"
    middle = entry.whole("mid_channels", None) or round(channels * ratio)
    expands = reduced or ratio != 1
    if not expands and middle != channels:
        raise entry.refusal("mid_channels", f"with expand_ratio=1 it must be in_channels={channels}")
    groups = _at_most_dividing(middle, entry.whole("groups", None) or middle)
    _check_groups(entry, groups, channels if reduced else middle, middle)
    return Bottleneck(
        channels, entry.whole("out_channels"), middle, _kernel_size(entry), entry.whole("stride", 1), groups,
        reduced, expands, entry.flag("use_se", False), entry.one_of("act_func", ACTIVATIONS, None),
    )  # fmt: skip


def _lite(entry: Fields, main: Layer | None) -> LiteLayer:
    """Read the lite residual module beside `main`."""
    assert main is not None  # the module holds it
    entry.equal("in_channels", main.in_channels)
    entry.equal("out_channels", main.out_channels)
    entry.equal("stride", main.stride)
    pooling, groups = entry.whole("downsample_ratio", None), entry.whole("n_groups", 1)
    middle = make_divisible(main.in_channels * entry.number("expand"), 8)
    _check_groups(entry, groups, main.in_channels, middle)
    kernel_size = _kernel_size(entry)
    if pooling is None and kernel_size > 1:
        raise entry.refusal("kernel_size", "after global pooling (downsample_ratio null) it is 1")
    if pooling is not None:
        entry.one_of("upsample_type", UPSAMPLINGS)
    upsampling = UPSAMPLINGS[0] if entry.is_none("upsample_type") else entry.text("upsample_type")
    act = entry.one_of("act_func", ACTIVATIONS)
    assert act is not None
    return LiteLayer(
        main.in_channels,
        main.out_channels,
        middle,
        kernel_size,
        main.stride,
        groups,
        act,
        pooling,
        upsampling,
    )


def _kernel_size(entry: Fields) -> int:
    size = entry.whole("kernel_size")
    if size % 2 == 0:
        raise entry.refusal("kernel_size", "an odd one is needed")
    return size


def _check_groups(entry: Fields, groups: int, in_channels: int, out_channels: int) -> None:
    if in_channels % groups or out_channels % groups:
        raise UserError(
            f"{entry.where}: {groups} groups do not divide {in_channels} and {out_channels} channels"
        )


def _at_most_dividing(channels: int, groups: int) -> int:
    """The largest number up to `groups` that divides the channels; the published code takes it."""
    return next(count for count in range(min(groups, channels), 0, -1) if channels % count == 0)

"""The names of a specialised network's layers: those of its published file, and those in our network."""

from collections.abc import Iterator

from tinytl.networks.net_config import Bottleneck, Layer
from tinytl.networks.read_net_config import parse
from tinytl.networks.specialized import block_names

# Of squeeze and excitation.
GATES = {"se.fc.reduce": "se.conv_reduce", "se.fc.expand": "se.conv_expand"}
LITE_LAYERS = ("conv1", "bn1", "conv2", "final_bn")


def specialized_modules(net_config: str) -> dict[str, str]:
    """Map published to canonical names, for every layer with parameters."""
    config = parse(net_config)
    names = {"classifier.linear": "classifier", **_pair("first_conv", "conv_stem", "bn1")}
    if config.mix is not None:
        names |= _pair("feature_mix_layer", "conv_head", "bn2")
    for name, block in block_names(config):
        published = f"blocks.{block.number}"
        inside = f"{name}.conv" if block.shortcut else name
        if block.conv is not None:
            names |= {f"{published}.conv.{a}": f"{inside}.{b}" for a, b in _layers(block.conv)}
        if block.shortcut is not None:
            names |= {f"{published}.shortcut.{a}": f"{name}.shortcut.{b}" for a, b in _layers(block.shortcut)}
        if block.lite is not None:
            lite = "lite_residual"
            names |= {f"{published}.conv.{lite}.{a}": f"{inside}.{lite}.{a}" for a in LITE_LAYERS}
    return names


def _pair(published: str, conv: str, norm: str) -> dict[str, str]:
    """The names of a convolution and of the norm after it, outside of blocks."""
    return {f"{published}.conv": conv, f"{published}.bn": norm}


def _layers(layer: Layer) -> Iterator[tuple[str, str]]:
    """Yield (published name, our name) inside of a layer."""
    if not isinstance(layer, Bottleneck):
        gated = ""  # the published part that holds squeeze and excitation
        parts = [("", "conv", "bn1")]
    elif layer.reduced:
        gated = "expand_conv."
        parts = [("expand_conv.", "conv_exp", "bn1"), ("reduce_conv.", "conv_pwl", "bn2")]
    elif layer.expands:
        gated = "depth_conv."
        parts = [
            ("inverted_bottleneck.", "conv_pw", "bn1"), ("depth_conv.", "conv_dw", "bn2"),
            ("point_linear.", "conv_pwl", "bn3"),
        ]  # fmt: skip
    else:
        gated = "depth_conv."
        parts = [("depth_conv.", "conv_dw", "bn1"), ("point_linear.", "conv_pw", "bn2")]
    for prefix, conv, norm in parts:
        yield f"{prefix}conv", conv
        yield f"{prefix}bn", norm
    if layer.use_se:
        yield from ((f"{gated}{published}", name) for published, name in GATES.items())

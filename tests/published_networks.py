"""Specialised networks in the published form: a net.config, and the weights of a network written out plainly.

The network here is written for these tests, from stock PyTorch's layers alone and under the published names.
"""

import json
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ACTS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, None: nn.Identity}
ZERO = {"name": "ZeroLayer", "stride": 1}
GN = {"momentum": 0.1, "eps": 1e-3, "gn_channel_per_group": 8, "ws_eps": 1e-5}


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "name": "ConvLayer", "in_channels": inputs, "out_channels": outputs, "kernel_size": kernel,
        "stride": stride, "dilation": 1, "groups": 1, "bias": False, "has_shuffle": False, "use_se": False,
        "use_bn": True, "act_func": "relu6", "dropout_rate": 0, "ops_order": "weight_bn_act", **more,
    }  # fmt: skip


def bottleneck(
    inputs: int, outputs: int, kernel: int, stride: int, ratio: float, **more: Any
) -> dict[str, Any]:
    return {
        "name": "MBConvLayer", "in_channels": inputs, "out_channels": outputs, "kernel_size": kernel,
        "stride": stride, "expand_ratio": ratio, "mid_channels": None, "act_func": "relu6", "use_se": False,
        "groups": None, **more,
    }  # fmt: skip


def with_lite(main: dict[str, Any], kernel: int = 5, pooling: int | None = 2) -> dict[str, Any]:
    lite = {
        "in_channels": main["in_channels"], "out_channels": main["out_channels"], "expand": 1,
        "kernel_size": kernel, "act_func": "relu", "n_groups": 2, "downsample_ratio": pooling,
        "upsample_type": "bilinear" if pooling else None, "stride": main["stride"],
    }  # fmt: skip
    return {"name": "LiteResidualModule", "main": main, "lite_residual": lite}


def block(layer: dict[str, Any] | None, shortcut: Any = None) -> dict[str, Any]:
    if shortcut == "identity":
        shortcut = {"name": "IdentityLayer", "in_channels": 8, "out_channels": 8}
    return {"name": "ResidualBlock", "conv": layer, "shortcut": shortcut}


def blocks() -> list[dict[str, Any]]:
    """Every kind of block, and some that compute nothing."""
    gated = bottleneck(24, 24, 3, 1, 2, mid_channels=40, act_func="h_swish", use_se=True)
    reduced = {**bottleneck(24, 24, 3, 1, 2, groups=6), "name": "ReducedMBConvLayer"}
    downwards = {**bottleneck(24, 32, 3, 2, 2, groups=2, use_se=True), "name": "ReducedMBConvLayer"}
    return [
        block(bottleneck(16, 16, 3, 1, 1)),
        block(with_lite(bottleneck(16, 24, 5, 2, 3))),
        block(with_lite(gated), "identity"),
        block(None, "identity"),
        block(ZERO, "identity"),
        block(with_lite(reduced), "identity"),
        block(downwards, ZERO),
        block(conv(32, 32, 3, act_func="relu"), "identity"),
        block(bottleneck(32, 32, 3, 1, 2, groups=4), conv(32, 32, 1, act_func=None)),
        block(with_lite(bottleneck(32, 64, 3, 2, 4, mid_channels=36), 1, None)),
        block(with_lite(bottleneck(64, 64, 3, 1, 2), 3), "identity"),
    ]


def config(classes: int = 6, bn: Any = GN) -> dict[str, Any]:
    """A network with every kind of layer."""
    return {
        "name": "ProxylessNASNets", "bn": dict(bn),
        "first_conv": conv(3, 16, 3, 2),
        "blocks": blocks(),
        "feature_mix_layer": conv(64, 96),
        "classifier": {
            "name": "LinearLayer", "in_features": 96, "out_features": classes, "bias": True, "use_bn": False,
            "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act",
        },
    }  # fmt: skip


class Layers(nn.Sequential):
    """Layers by their published names."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))


class Standardized(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        return F.conv2d(
            x, flat.view_as(self.weight), None, self.stride, self.padding, self.dilation, self.groups
        )


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(8, (channels // 4 + 4) // 8 * 8)
        reduced += 8 * (reduced < 0.9 * (channels // 4))
        self.fc = Layers(
            reduce=nn.Conv2d(channels, reduced, 1), relu=nn.ReLU(),
            expand=nn.Conv2d(reduced, channels, 1), gate=nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True))


class Lite(nn.Module):
    def __init__(self, c: dict[str, Any], make: "Maker") -> None:
        super().__init__()
        middle = max(8, int(c["in_channels"] * c["expand"] + 4) // 8 * 8)
        kernel, self.ratio, self.mode = c["kernel_size"], c["downsample_ratio"], c["upsample_type"]
        stride = c["stride"] if self.ratio else 1
        self.conv1 = make.conv(c["in_channels"], middle, kernel, stride, c["n_groups"])
        self.bn1, self.act = make.norm(middle), nn.ReLU()
        self.conv2, self.final_bn = make.conv(middle, c["out_channels"], 1), make.norm(c["out_channels"])

    def forward(self, x, size):
        x = F.adaptive_avg_pool2d(x, 1) if self.ratio is None else F.avg_pool2d(x, self.ratio)
        x = self.final_bn(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return x if self.ratio is None else F.interpolate(x, size, mode=self.mode, align_corners=False)


class WithLite(nn.Module):
    def __init__(self, c: dict[str, Any], make: "Maker") -> None:
        super().__init__()
        self.main_branch, self.lite_residual = make.layer(c["main"]), Lite(c["lite_residual"], make)

    def forward(self, x):
        out = self.main_branch(x)
        return out + self.lite_residual(x, out.shape[2:])


class Block(nn.Module):
    def __init__(self, c: dict[str, Any], make: "Maker") -> None:
        super().__init__()
        self.conv, self.shortcut = make.layer(c["conv"]), make.layer(c["shortcut"])

    def forward(self, x):
        if self.conv is None:
            return x
        return self.conv(x) if self.shortcut is None else self.conv(x) + self.shortcut(x)


class Maker:
    def __init__(self, bn: dict[str, Any]) -> None:
        self.bn = bn

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        kind = Standardized if self.bn.get("gn_channel_per_group") else nn.Conv2d
        return kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.Module:
        size = self.bn.get("gn_channel_per_group")
        if size is None:
            return nn.BatchNorm2d(channels, eps=self.bn["eps"])
        size = next(s for s in range(size, 0, -1) if channels % s == 0)
        return nn.GroupNorm(channels // size, channels, eps=self.bn["eps"])

    def layer(self, c: dict[str, Any] | None) -> Any:
        if c is None or c["name"] == "ZeroLayer":
            return None
        if c["name"] == "IdentityLayer":
            return nn.Identity()
        if c["name"] == "LiteResidualModule":
            return WithLite(c, self)
        if c["name"] == "ConvLayer":
            return self._cna(
                c, c["in_channels"], c["out_channels"], c["kernel_size"], c["stride"], c["groups"]
            )
        middle = c["mid_channels"] or round(c["in_channels"] * c["expand_ratio"])
        ends = Layers(conv=self.conv(middle, c["out_channels"], 1), bn=self.norm(c["out_channels"]))
        window = (c["kernel_size"], c["stride"], c["groups"] or middle)
        if c["name"] == "ReducedMBConvLayer":
            return Layers(expand_conv=self._cna(c, c["in_channels"], middle, *window), reduce_conv=ends)
        plain = {**c, "use_se": False}
        first = (
            {}
            if c["expand_ratio"] == 1
            else {"inverted_bottleneck": self._cna(plain, c["in_channels"], middle)}
        )
        return Layers(**first, depth_conv=self._cna(c, middle, middle, *window), point_linear=ends)

    def _cna(
        self, c: dict[str, Any], inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> nn.Module:
        gate = {"se": Gate(outputs)} if c["use_se"] else {}
        layer = self.conv(inputs, outputs, kernel, stride, groups)
        return Layers(conv=layer, bn=self.norm(outputs), act=ACTS[c["act_func"]](), **gate)


class Network(nn.Module):
    """The network of a net.config, by stock PyTorch."""

    def __init__(self, c: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        make = Maker(c["bn"])
        self.first_conv = make.layer(c["first_conv"])
        self.blocks = nn.ModuleList([Block(entry, make) for entry in c["blocks"]])
        self.feature_mix_layer = make.layer(c["feature_mix_layer"])
        self.classifier = Layers(
            linear=nn.Linear(c["classifier"]["in_features"], c["classifier"]["out_features"])
        )
        for parameter in self.parameters():  # away from the starting values of norms
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
            elif parameter.ndim == 4:  # rounded to 256 values, as the published ones are
                step = parameter.data.abs().max() / 127
                parameter.data.copy_((parameter.data / step).round() * step)

    def forward(self, x):
        x = self.first_conv(x)
        for entry in self.blocks:
            x = entry(x)
        x = x if self.feature_mix_layer is None else self.feature_mix_layer(x)
        return self.classifier(x.mean((2, 3)))


def write(folder, c: dict[str, Any], seed: int = 0) -> Network:
    """Write net.config and init into a folder; return the network."""
    folder.mkdir(parents=True, exist_ok=True)
    network = Network(c, seed)
    (folder / "net.config").write_text(json.dumps(c))
    torch.save({"state_dict": network.state_dict()}, folder / "init")
    return network

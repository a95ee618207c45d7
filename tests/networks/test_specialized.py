"""Networks of a net.config compute what the plain network of the same file does, in float64."""

import copy
import json
from dataclasses import replace
from typing import Any

import published_networks as published
import pytest
import torch

from tinytl.assembly import TrainingStep, adam, engage, prepare, trainable
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory.meter import LiveMemory
from tinytl.memory.predict import predicted_bytes
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.proxylessnas import ARCHITECTURES
from tinytl.networks.read_net_config import parse
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.count import count_as_paper
from tinytl.weights.build import build_network
from tinytl.weights.specialized_files import net_config

BN = {"momentum": 0.1, "eps": 1e-3}


def spec(source, norm: Any = "gn", classes=6):
    text = net_config(str(source))
    return NetworkSpec(
        "tinytl_specialized", norm, classes, LiteResidualConfig(), 0.0, str(source), net_config=text
    )


@pytest.mark.parametrize("norm", ["gn", "bn_frozen"])
def test_outputs(tmp_path, norm):
    plain = published.write(tmp_path, published.config(bn=published.GN if norm == "gn" else BN))
    network = build_network(spec(tmp_path / "init", norm)).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(network(images), plain.double().eval()(images), rtol=1e-10, atol=1e-10)


def gradients(network, images):
    network.zero_grad()
    (network(images) ** 2).mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["bias", "tinytl", "tinytl_last_two", "full"])
def test_gradients_of_the_lean_engine(tmp_path, method):
    """Against stock PyTorch on the same network."""
    published.write(tmp_path, published.config())
    step = TrainingStep(spec(tmp_path / "init"), method, 2, 64, plan=EnginePlan())
    stock = build_network(step.spec).double()
    prepare(stock, step)
    lean = copy.deepcopy(stock)
    engage(lean, step)
    assert lean.lean_report.native
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, found = gradients(stock, images), gradients(lean, images)
    assert expected.keys() == found.keys() and len(expected) > 40
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-8 * gradient.abs().max()), name


def test_a_step_takes_what_is_predicted(tmp_path):
    """Its frozen weights are held in 8 bits, though they were rounded elsewhere."""
    published.write(tmp_path, published.config())
    step = TrainingStep(spec(tmp_path / "init"), "tinytl", 8, 64)
    network = build_network(step.spec)
    prepare(network, step)
    engage(network, step)
    optimizer = adam(trainable(network), step, lr=1e-3)
    images = torch.randn(8, 3, 64, 64)
    peaks_mb = []
    for _ in range(2):  # Adam makes its state in the first step
        with LiveMemory(network, optimizer, images) as live:
            loss = network(images).mean()
            live.end_of_forward(loss)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        peaks_mb.append(live.report().peak_mb)
    assert peaks_mb[-1] == pytest.approx(predicted_bytes(step) / 1e6, rel=0.03)


def changed(place, **changes):
    """The network's net.config with other entries in a layer."""
    whole = published.config()
    entry = whole
    for name in place:
        entry = entry[name]
    entry.update(changes)
    return json.dumps(whole)


LITE = ("blocks", 1, "conv", "lite_residual")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"net.config: \[\] is not a mapping"),
        (changed((), bn=None), "net.config: bn is missing"),
        (changed(("bn",), gn_channel_per_group=16), "bn: gn_channel_per_group=16: only groups of 8"),
        (changed((), blocks=[]), "blocks=.*a list is needed"),
        (changed(("first_conv",), in_channels=1), "first_conv: in_channels=1: it must be 3 here"),
        (
            changed(("blocks", 1), conv=published.conv(24, 24)),
            "blocks.1: conv: in_channels=24: it must be 16",
        ),
        (changed(("blocks", 0, "conv"), name="DWConv"), "blocks.0: conv: name='DWConv': ConvLayer or MBConv"),
        (changed(("blocks", 0, "conv"), kernel_size=4), "kernel_size=4: an odd one is needed"),
        (changed(("blocks", 0, "conv"), act_func="gelu"), "act_func='gelu': relu or relu6"),
        (changed(("blocks", 0, "conv"), stride="2"), "stride='2': a positive whole number"),
        (changed(("blocks", 0, "conv"), mid_channels=24), "mid_channels=24: with expand_ratio=1"),
        (changed(("blocks", 0), shortcut=published.conv(16, 8)), "blocks.0: shortcut=.* does not fit"),
        (changed(("blocks", 1), shortcut={"name": "IdentityLayer"}), "the input cannot be added"),
        (changed(LITE, stride=1), "blocks.1: conv: lite_residual: stride=1: it must be 2 here"),
        (changed(LITE, downsample_ratio=None), "kernel_size=5: after global pooling"),
        (changed(("blocks", 7, "conv"), ops_order="bn_act_weight"), "only weight_bn_act is known here"),
        (changed(("classifier",), in_features=64), "classifier: in_features=64: it must be 96 here"),
    ],
)
def test_what_cannot_be_right_is_told_with_its_place(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse(text)
    assert str(error.value).startswith("net.config: ") and "\n" not in str(error.value)


def test_the_older_name_of_a_block_s_convolution():
    whole = published.config()
    older = [{"mobile_inverted_conv" if k == "conv" else k: v for k, v in b.items()} for b in whole["blocks"]]
    assert parse(json.dumps({**whole, "blocks": older})) == parse(json.dumps(whole))


def described(architecture):
    """The net.config of a ProxylessNAS with lite residual modules."""
    blocks = [published.block(published.bottleneck(architecture.stem, architecture.first, 3, 1, 1))]
    channels, pixels = architecture.first, 128
    for outputs, stride, stage in architecture.stages:
        for number, (kernel, ratio) in enumerate(block for block in stage if block):
            by = 1 if number else stride
            lite = min(5, max(1, pixels // 2 - (pixels // 2 + 1) % 2))
            main = published.bottleneck(channels, outputs, kernel, by, ratio)
            identity = "identity" if by == 1 and channels == outputs else None
            blocks.append(published.block(published.with_lite(main, lite), identity))
            channels, pixels = outputs, pixels // by
    stem, mix = published.conv(3, architecture.stem, 3, 2), published.conv(channels, architecture.head)
    return {**published.config(), "first_conv": stem, "blocks": blocks, "feature_mix_layer": mix,
            "classifier": {"name": "LinearLayer", "in_features": architecture.head}}  # fmt: skip


@pytest.mark.parametrize("method", ["last", "tinytl_last_two"])
def test_the_paper_s_count_of_the_same_network(method):
    """A ProxylessNAS-Mobile described by a net.config counts as the built-in one, so as in Table 2."""
    built_in = NetworkSpec("proxylessnas_mobile", "gn", 102, LiteResidualConfig())
    text = json.dumps(described(ARCHITECTURES["proxylessnas_mobile"]))
    same = replace(built_in, model="tinytl_specialized", net_config=text)
    assert count_as_paper(same, method, 224) == count_as_paper(built_in, method, 224)

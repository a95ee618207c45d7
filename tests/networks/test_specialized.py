"""Networks of a net.config compute what the plain network of the same file does, in float64."""

import copy

import published_networks as published
import pytest
import torch

from tinytl.assembly import TrainingStep, engage, prepare
from tinytl.engine import EnginePlan
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network
from tinytl.weights.specialized_files import net_config

BN = {"momentum": 0.1, "eps": 1e-3}


def spec(source, norm="gn", classes=6):
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

"""Networks of a net.config compute what the plain network of the same file does, in float64."""

import copy
import json

import published_networks as published
import pytest
import torch

from tinytl.assembly import TrainingStep, engage, prepare
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.methods import METHODS
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.net_config import parse
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.count import count_as_paper
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

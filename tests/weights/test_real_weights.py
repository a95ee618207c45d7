"""Test real weights and images if they are present (they are not part of the project)."""

import json

import numpy
import pytest
import torch
from goldens import SHARED

from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

WEIGHTS = SHARED / "weights" / "proxyless-w0.3-r176_imagenet.pth"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the ImageNet weights are not here")


@pytest.mark.parametrize("norm", ["bn", "bn_frozen"])
def test_logits_of_the_imagenet_network(norm):
    golden = torch.tensor(json.loads((SHARED / "golden" / "proxyless_w03_logits.json").read_text())["logits"])
    network = build_network(NetworkSpec("proxylessnas_w03", norm, 1000, checkpoint=str(WEIGHTS))).eval()
    images = numpy.random.default_rng(0).standard_normal((2, 3, 176, 176)).astype("float32")
    with torch.no_grad():
        logits = network(torch.from_numpy(images))
    assert ((logits - golden).norm() / golden.norm()).item() < 1e-4
    assert network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)

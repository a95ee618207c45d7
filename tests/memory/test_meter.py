"""Compare the meter of live memory with byte counts by hand and known figures of stock PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinytl.memory.meter import LiveMemory
from tinytl.methods import freeze, set_train_mode
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network


def step(network, optimizer, images, labels):
    with LiveMemory(network, optimizer, (images, labels)) as live:
        loss = F.cross_entropy(network(images), labels)
        live.end_of_forward(loss)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return live.report()


def test_bytes_of_a_network_by_hand():
    """Linear-ReLU-Linear, every tensor countable on paper."""
    batch, wide = 64, 256
    network = nn.Sequential(nn.Linear(32, wide), nn.ReLU(), nn.Linear(wide, 4))
    parameters = sum(p.numel() for p in network.parameters()) * 4
    optimizer = torch.optim.Adam(network.parameters())
    images, labels = torch.randn(batch, 32), torch.randint(0, 4, (batch,))
    step(network, optimizer, images, labels)
    report = step(network, optimizer, images, labels)
    hidden, log_probabilities = batch * wide * 4, batch * 4 * 4
    loss_and_weight = 8  # the loss, and the total weight that its mean divides by
    assert report.kept_by_operator_bytes["Addmm + Relu"] == hidden
    assert report.kept_bytes == hidden + log_probabilities + loss_and_weight
    states = len(list(network.parameters()))
    assert report.end_of_forward_bytes == (
        parameters
        + 2 * parameters
        + 4 * states
        + (images.numel() * 4 + labels.numel() * 8)
        + report.kept_bytes
    )
    assert report.peak_split_bytes["parameters"] == parameters
    assert report.peak_split_bytes["optimizer"] == 2 * parameters + 4 * states
    assert sum(report.peak_split_bytes.values()) == report.peak_bytes


def test_repeatable():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    optimizer = torch.optim.Adam(network.parameters())
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 2, (4,))
    step(network, optimizer, images, labels)
    assert step(network, optimizer, images, labels) == step(network, optimizer, images, labels)


def test_views_and_in_place_operators_count_once():
    class Views(nn.Module):
        def forward(self, x):
            return x.mul(2).view(-1).add_(1).view(x.shape[0], -1)

    images, labels = torch.randn(4, 1000, requires_grad=True), torch.randint(0, 1000, (4,))
    with LiveMemory(Views(), None, (images, labels)) as live:
        loss = F.cross_entropy(Views()(images), labels)
        live.end_of_forward(loss)
    report = live.report()
    # images; their double, freed; log-softmax over it: never more than three at once
    assert report.kept_bytes == images.numel() * 4 + 8
    assert report.peak_bytes <= 3 * images.numel() * 4 + 100


@pytest.mark.parametrize(("method", "kept_mb"), [("tinytl", 536), ("full", 521)])
def test_stock_pytorch_keeps_what_it_is_known_to_keep(method, kept_mb):
    """ProxylessNAS-Mobile, GN + weight standardisation, batch 8, 224 px; measured on the published code."""
    lite = LiteResidualConfig() if method == "tinytl" else None
    network = build_network(NetworkSpec("proxylessnas_mobile", "gn", 102, lite))
    freeze(network, method)
    set_train_mode(network, "gn")
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.0)
    report = step(network, optimizer, torch.randn(8, 3, 224, 224), torch.randint(0, 102, (8,)))
    assert report.kept_bytes / 1e6 == pytest.approx(kept_mb, rel=0.02)

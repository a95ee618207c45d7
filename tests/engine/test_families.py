"""Every family of timm's networks: the lean engine's gradients equal stock PyTorch's, or it says why not."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models import list_models, list_modules
from torch import nn

from tinytl.engine import EnginePlan, make_lean
from tinytl.errors import UserError
from tinytl.methods import freeze, set_train_mode

LARGEST = 30_000_000  # parameters
SMALL_ENOUGH = 6_000_000  # no smaller model of the family is looked for
SIDES = (64, 96, 128, 224, 256)  # px; the first that the network takes
PLAN = EnginePlan(slice_kb=100.0)


def smallest(family):
    """The name of a small model of a file of timm's; None where none is small, or none convolves."""
    best = None
    for name in list_models(module=family):
        with torch.device("meta"):
            network = timm.create_model(name)
        size = sum(p.numel() for p in network.parameters())
        convolves = sum(isinstance(m, nn.Conv2d) for m in network.modules()) > 1
        if convolves and size < LARGEST and (best is None or size < best[0]):
            best = size, name
            if size < SMALL_ENOUGH:
                break
    return best and best[1]


def prepared(name):
    """The model in float64, with its parameters and statistics away from where they begin."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).double()
    for key, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.2 * (torch.rand_like(tensor) if "var" in key else torch.randn_like(tensor)))
    for module in network.modules():
        if isinstance(module, nn.Dropout):  # its mask depends on the layout of the map in memory
            module.p = 0.0
    freeze(network, "bias")
    set_train_mode(network, "bn_frozen")
    return network


def gradients(network, images):
    torch.manual_seed(1)
    out: Any = network(images)
    out = sum(out) if isinstance(out, tuple | list) else out
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found, loss.detach()


def stock_gradients(network):
    """Images that the network takes, and stock PyTorch's gradients and loss."""
    *sides, last = dict.fromkeys((*SIDES, network.pretrained_cfg["input_size"][-1]))
    for side in (*sides, last):
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        try:
            return images, *gradients(network, images)
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError):
            if side == last:
                raise
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("family", list_modules())
def test_gradients_of_a_family(family):
    name = smallest(family)
    if name is None:
        pytest.skip("no small convolutional network")
    network = prepared(name)
    images, expected, loss = stock_gradients(copy.deepcopy(network))
    try:
        found, lean_loss = gradients(make_lean(network, PLAN), images)
    except UserError as refusal:
        assert "\n" not in str(refusal)
        return
    torch.testing.assert_close(lean_loss, loss, rtol=1e-9, atol=1e-9)
    assert found.keys() == expected.keys()
    floor = 1e-4 * max(gradient.norm() for gradient in expected.values())
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-9 * gradient.norm().clamp_min(floor), key

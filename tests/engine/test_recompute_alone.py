"""Without lean layers, the default on a GPU, the engine recomputes PyTorch's own blocks and does no more."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import tiny_network  # noqa: F401  (timm knows it from here on)
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tinytl.assembly import TrainingStep, prepare
from tinytl.engine import EnginePlan, make_lean
from tinytl.memory.step import build, run
from tinytl.methods import set_train_mode
from tinytl.weights.build import build_network

ALONE = EnginePlan(lean_layers=False)
CASES = [(method, norm) for method in ("tinytl", "bias", "full", "last") for norm in ("gn", "bn_frozen")]


def prepared(step):
    network = build_network(step.spec).double()
    prepare(network, step)
    set_train_mode(network, step.spec.norm)
    return network


def gradients(network, images):
    torch.manual_seed(0)  # of dropout
    network(images).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_layers_stay_and_gradients_are_right(method, norm):
    stock = prepared(TrainingStep.of("tinytl_tiny", norm, method, 2, 32, 10))
    alone = make_lean(copy.deepcopy(stock), ALONE)
    for before, after in zip(stock.modules(), alone.modules(), strict=True):
        assert isinstance(after, type(before))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted, got = gradients(stock, images), gradients(alone, images)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def calls(step):
    """How often each kind of layer is computed in a training step."""
    network, optimizer = build(step)
    counted = Counter()
    handle = register_module_forward_pre_hook(lambda module, *_: counted.update([type(module).__name__]))
    try:
        run(step, network, optimizer)
    finally:
        handle.remove()
    return counted


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_it_computes_no_more_than_stock_pytorch_with_checkpoints(method, norm):
    step = TrainingStep.of("tinytl_tiny", norm, method, 2, 32, 10)
    alone, checkpoints = calls(replace(step, plan=ALONE)), calls(replace(step, engine="checkpoints"))
    for layer in ("Conv2d", "WeightStandardizedConv2d", "GroupNorm", "BatchNorm2d", "ReLU6"):
        assert alone[layer] <= checkpoints[layer], layer
    assert sum(alone.values()) > 20

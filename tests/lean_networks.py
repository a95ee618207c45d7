"""Networks with parameters away from where they begin, and the comparison of a lean one with stock."""

import copy
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import timm
import torch
from torch import nn
from torch.func import functional_call

from tinytl.engine import EnginePlan, make_lean
from tinytl.methods import freeze, set_train_mode
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

PLAN = EnginePlan(slice_kb=30.0)
IMAGES = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def moved(network):
    """The network in float64, with its parameters and statistics away from where they begin."""
    torch.manual_seed(0)
    network = network.double()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            tensor.add_(0.2 * (torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor)))
    return network


def frozen(name, method="bias", norm: Any = "bn_frozen", **options) -> Any:
    network = moved(timm.create_model(name, num_classes=5, **options))
    freeze(network, method)
    set_train_mode(network, norm)
    return network


def tinytl_network(norm: Any = "gn", model: str = "proxylessnas_w03") -> Any:
    network = moved(build_network(NetworkSpec(model, norm, 5, LiteResidualConfig(), 0.0)))
    freeze(network, "tinytl")
    set_train_mode(network, norm)
    return network


def own(*layers) -> Any:
    """A network of one's own, whose biases and norms train."""
    network = moved(nn.Sequential(*layers)).train()
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = parameter.ndim == 1
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


def gradients(network, images=IMAGES, parameters=None) -> Any:
    torch.manual_seed(1)
    parameters = parameters or {name: p for name, p in network.named_parameters() if p.requires_grad}
    out: Any = functional_call(network, parameters, (images,)) if parameters else network(images)
    out = sum(out) if isinstance(out, tuple) else out
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() + out.square().sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)), out


def assert_same(stock, lean, images=IMAGES, parameters=None):
    (expected, out), (found, lean_out) = (gradients(n, images, parameters) for n in (stock, lean))
    torch.testing.assert_close(lean_out, out, rtol=1e-9, atol=1e-9)
    floor = 1e-4 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm().clamp_min(floor), name


def lean_copy(network, plan=PLAN) -> Any:
    return make_lean(copy.deepcopy(network), plan)

"""The native end of a network against the layers it replaces, in float64."""

from typing import Any

import pytest
import torch
from frozen_layers import SMOOTH, frozen_conv, random_norm, relative_errors, results
from torch import Tensor, nn

from tinytl.engine.native.head import NativeHead
from tinytl.engine.native.norms import Activation
from tinytl.networks.norms import WeightStandardizedConv2d


class Stock:
    """A 1x1 convolution, a norm, an activation and global average pooling; and the native layer of them."""

    def __init__(
        self, inputs: int = 20, outputs: int = 72, group: int = 8, act: type[nn.Module] = nn.ReLU6,
        conv: type[nn.Conv2d] = nn.Conv2d, quantize: str = "int8",
    ) -> None:  # fmt: skip
        self.conv = frozen_conv(conv(inputs, outputs, 1, bias=False), quantize).double()
        self.norm, self.act = random_norm(outputs, group).double(), act
        described = Activation.of(act())
        assert described is not None and NativeHead.supports(self.conv, self.norm, described)
        self.native = NativeHead.of_parts(self.conv, self.norm, described).double()

    def __call__(self, x: Tensor) -> Tensor:
        """The layers one after another."""
        return SMOOTH.get(self.act, self.act())(self.norm(self.conv(x))).mean((2, 3), keepdim=True)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several slices": {"outputs": 312},
    "stored statistics": {"group": 0},
    "groups of 5": {"outputs": 65, "group": 5},
    "groups wider than a vector": {"outputs": 60, "group": 20},
    "more inputs than a vector": {"inputs": 53},
    "weight standardisation": {"conv": WeightStandardizedConv2d},
    "k-means": {"quantize": "kmeans"},
    "hard swish": {"act": nn.Hardswish},
    "SiLU": {"act": nn.SiLU},
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_those_of_the_layers(name: str):
    torch.manual_seed(0)
    stock = Stock(**CASES[name])
    x = torch.randn(3, stock.conv.in_channels, 5, 7, dtype=torch.float64)
    grad = torch.randn(3, stock.conv.out_channels, 1, 1, dtype=torch.float64)
    exact = results(stock, [stock.norm], x, grad)
    assert max(relative_errors(results(stock.native, [stock.norm], x, grad), exact)) < 1e-9

    for module in (stock.norm, stock.conv, stock.native):
        module.float()
    arguments = ([stock.norm], x.float(), grad.float())
    own = relative_errors(results(stock.native, *arguments), exact)
    theirs = relative_errors(results(stock, *arguments), exact)
    assert max(own) < 4 * max(theirs) + 1e-6


def test_results_are_the_same_bits_for_any_number_of_threads():
    torch.manual_seed(0)
    stock = Stock()
    x, grad = torch.randn(5, 20, 6, 6, dtype=torch.float64), torch.randn(5, 72, 1, 1, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(results(stock.native, [stock.norm], x, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    empty = results(stock.native, [stock.norm], x[:0], grad[:0])
    assert empty[0].shape == (0, 72, 1, 1) and not empty[2].any()

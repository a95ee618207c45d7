"""Native bottlenecks and ends whose convolutions train, against the layers they replace, in float64."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny_network  # noqa: F401  (it registers the network)
import torch
from frozen_layers import SMOOTH, Allocations, frozen_conv, random_norm, relative_errors
from timm.layers import Conv2dSame
from torch import Tensor, nn

from tinytl.assembly import TrainingStep, engage, prepare
from tinytl.engine.native.block import NativeLiteResidualBlock
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.head import NativeHead
from tinytl.engine.native.lite_residual import NativeLiteResidual
from tinytl.engine.native.norms import Activation
from tinytl.engine.plan import EnginePlan
from tinytl.engine.report import lean_report
from tinytl.networks.lite_residual import LiteResidual, LiteResidualBlock, LiteResidualConfig
from tinytl.networks.norms import WeightStandardizedConv2d
from tinytl.weights.build import build_network

NAMES = ("conv_pw", "conv_dw", "conv_pwl")


class Stock(nn.Module):
    """A bottleneck of ordinary layers that train; `native()` makes the native one of the same parameters."""

    def __init__(
        self, inputs: int = 6, width: int = 24, outputs: int = 10, kernel: int = 3, stride: int = 1,
        group: int = 8, last_group: int = 5, act: type[nn.Module] = nn.ReLU6, expand: str | None = "1x1",
        stem: tuple[int, int] = (3, 2), conv: Any = WeightStandardizedConv2d, skip: bool = False,
        frozen: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()

        def layer(name: str, i: int, o: int, k: int, s: int = 1, groups: int = 1) -> Any:
            cls: Any = nn.Conv2d if conv is Conv2dSame and k == 1 else conv
            made = cls(i, o, k, s, k // 2, groups=groups, bias=False)
            return frozen_conv(made, "int8") if name in frozen else made

        if expand is None:
            width = inputs
        else:
            self.conv_pw = layer("conv_pw", inputs, width, *((1, 1) if expand == "1x1" else stem))
            self.bn1 = random_norm(width, group)
        self.conv_dw, self.bn2 = (
            layer("conv_dw", width, width, kernel, stride, width),
            random_norm(width, group),
        )
        self.conv_pwl, self.bn3 = layer("conv_pwl", width, outputs, 1), random_norm(outputs, last_group)
        self.act, self.skip, self.inputs = act, skip, inputs

    def forward(self, x: Tensor) -> Tensor:
        """The layers one after another."""
        out, act = x, SMOOTH.get(self.act, self.act())
        if hasattr(self, "conv_pw"):
            out = act(self.bn1(self.conv_pw(out)))
        out = act(self.bn2(self.conv_dw(out)))
        out = self.bn3(self.conv_pwl(out))
        return out + x if self.skip else out

    def native(self, **options: Any) -> NativeBottleneck:
        """The native block of a copy."""
        own = copy.deepcopy(self)
        expand, depthwise, project = (getattr(own, name, None) for name in NAMES)
        norms = {name: getattr(own, name) for name in ("bn1", "bn2", "bn3") if hasattr(own, name)}
        acts = [Activation.of(self.act())] * (len(norms) - 1)
        assert NativeBottleneck.supports(expand, depthwise, project, list(norms.values()), acts)
        return NativeBottleneck(expand, depthwise, project, norms, acts, self.skip, **options)  # type: ignore[arg-type]


def gradients(module: nn.Module, x: Tensor, grad: Tensor, needs_x: bool = True) -> dict[str, Tensor]:
    """The output, and the gradients with respect to x and to the parameters that train."""
    x = x.detach().clone().requires_grad_(needs_x)
    out = module(x)
    out.backward(grad)
    found = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    if needs_x:
        found["x"] = x.grad
    module.zero_grad()
    return {"out": out.detach(), **found}  # type: ignore[dict-item]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], most: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    errors = relative_errors(list(found.values()), [expected[name] for name in found])
    assert max(errors) < most, dict(zip(found, errors, strict=True))


FROZEN_NORMS = {"group": 0, "last_group": 0, "conv": nn.Conv2d}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride 2": {"stride": 2},
    "stored statistics": FROZEN_NORMS,
    "stored statistics, stride 2": {**FROZEN_NORMS, "stride": 2, "kernel": 5},
    "stored statistics, standardised": {"group": 0, "last_group": 0},
    "third pass": {"keep_projection": False, "kernel": 7},
    "7x7, stride 2": {"kernel": 7, "stride": 2, "outputs": 37, "last_group": 37},
    "5x5, small map": {"kernel": 5, "size": (2, 3)},
    "11x11": {"kernel": 11},
    "1x1": {"kernel": 1, "conv": nn.Conv2d},
    "groups of 5 leave a lane free": {"group": 5, "width": 35, "last_group": 1},
    "groups wider than a vector": {"group": 20, "width": 40, "last_group": 10},
    "hard sigmoid is not 0 in padding": {"group": 5, "width": 25, "act": nn.Hardsigmoid},
    "SiLU": {"act": nn.SiLU},
    "shortcut": {"outputs": 6, "last_group": 3, "skip": True},
    "no expansion": {"expand": None, "inputs": 24},
    "no expansion, stored, stride 2": {"expand": None, "inputs": 20, **FROZEN_NORMS, "stride": 2},
    "stem": {"expand": "stem", "inputs": 3},
    "stem of an image without gradient": {"expand": "stem", "inputs": 3, "needs_x": False},
    "stem, stored, 5x5, stride 1": {"expand": "stem", "inputs": 2, "stem": (5, 1), **FROZEN_NORMS},
    "stem, stored, without gradient": {"expand": "stem", "inputs": 3, **FROZEN_NORMS, "needs_x": False},
    "expansion without gradient of x": {"needs_x": False},
    "TensorFlow's padding": {"conv": Conv2dSame, "kernel": 5, "stride": 2, "expand": "stem", "inputs": 3},
    "frozen expansion": {"frozen": ("conv_pw",)},
    "frozen depthwise convolution": {"frozen": ("conv_dw",), "needs_x": False},
    "frozen projection": {"frozen": ("conv_pwl",)},
    "several slices": {"width": 88, "slice_bytes": 2e4},
    "larger maps than a chunk": {"size": (14, 29), "inputs": 37, "width": 64, "outputs": 20},
}  # fmt: skip
OPTIONS = ("keep_projection", "slice_bytes")


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_those_of_the_layers(name: str):
    torch.manual_seed(0)
    case = dict(CASES[name])
    size, needs_x = case.pop("size", (9, 11)), case.pop("needs_x", True)
    options = {option: case.pop(option) for option in OPTIONS if option in case}
    stock = Stock(**case).double()
    x = torch.randn(2, stock.inputs, *size, dtype=torch.float64)
    grad = torch.randn_like(stock(x))
    exact = gradients(stock, x, grad, needs_x)
    assert_close(gradients(stock.native(**options), x, grad, needs_x), exact)

    stock.float()
    theirs = gradients(stock, x.float(), grad.float(), needs_x)
    own = gradients(stock.native(**options), x.float(), grad.float(), needs_x)
    rounding = max(relative_errors(list(theirs.values()), [exact[name] for name in theirs]))
    assert_close(own, exact, 4 * rounding + 1e-6)


@pytest.mark.parametrize("conv", [nn.Conv2d, WeightStandardizedConv2d])
def test_an_end_that_trains_equals_its_layers(conv: Any):
    torch.manual_seed(0)
    layer, norm = conv(20, 72, 1, bias=False).double(), random_norm(72, 8).double()
    act = Activation.of(nn.ReLU6())
    assert act and NativeHead.supports(layer, norm, act)
    head = NativeHead.of_parts(layer, norm, act)
    x = torch.randn(3, 20, 5, 7, dtype=torch.float64)
    grad = torch.randn(3, 72, 1, 1, dtype=torch.float64)
    found = gradients(head, x, grad)
    stock = nn.Sequential(layer, norm, nn.ReLU6(), nn.AdaptiveAvgPool2d(1))
    expected = gradients(stock, x, grad)
    assert_close(found, {name.replace("0.", "", 1): g for name, g in expected.items() if "1." not in name})


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_with_a_lite_residual_equals_its_layers(stride: int):
    torch.manual_seed(0)
    main = Stock(inputs=16, width=48, outputs=16, last_group=8, stride=stride).double()
    lite = LiteResidual(16, 16, stride, 3, LiteResidualConfig(groups=2), "gn", 1e-5).double()
    stock = LiteResidualBlock(main, lite)
    native = NativeLiteResidualBlock(main.native(), NativeLiteResidual(copy.deepcopy(lite)))
    x = torch.randn(2, 16, 12, 12, dtype=torch.float64)
    grad = torch.randn_like(stock(x))
    assert_close(gradients(native, x, grad), gradients(stock, x, grad))


@pytest.mark.parametrize("case", [{}, FROZEN_NORMS, {"expand": None, "inputs": 24}])
def test_gradients_are_the_same_bits_for_any_number_of_threads(case: dict[str, Any]):
    torch.manual_seed(0)
    native = Stock(**case).native()
    x = torch.randn(5, native.in_channels, 9, 9)
    grad = torch.randn_like(native(x))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(native, x, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[name], g) for name, g in found[0].items())


def test_gradients_of_images_are_added_in_place_where_autograd_would_add_them():
    torch.manual_seed(0)
    stock = Stock().double()
    native = stock.native()
    x = torch.randn(3, 6, 9, 11, dtype=torch.float64)
    grad = torch.randn_like(stock(x))
    stock(x).backward(grad)
    native(x[:1]).backward(grad[:1])
    before = {name: p.grad for name, p in native.named_parameters()}
    for image in (1, 2):
        native(x[image : image + 1]).backward(grad[image : image + 1])
    assert all(before[name] is p.grad for name, p in native.named_parameters())
    expected = {name: p.grad for name, p in stock.named_parameters()}
    assert_close({n: p.grad for n, p in native.named_parameters()}, expected)  # type: ignore[misc]


def test_gradients_that_are_asked_for_are_returned():
    torch.manual_seed(0)
    native = Stock().native()
    x = torch.randn(1, 6, 9, 11)
    out = native(x)
    expected = gradients(native, x, torch.ones_like(out))
    parameters = dict(native.named_parameters())
    native(x).sum().backward()
    found = torch.autograd.grad(native(x).sum(), list(parameters.values()))
    assert all(torch.equal(g, expected[name]) for g, name in zip(found, parameters, strict=True))

    seen: list[Tensor] = []
    weight = parameters["conv_dw.weight"]
    weight.register_hook(seen.append)
    native(x).sum().backward()
    assert torch.equal(seen[0], expected["conv_dw.weight"])
    assert weight.grad is not None and torch.equal(weight.grad, 2 * expected["conv_dw.weight"])
    weight.requires_grad_(False)
    native(x).sum().backward()


@pytest.mark.parametrize("case", [{}, {"expand": "stem", "inputs": 3, "needs_x": False}, {"expand": None}])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_meta_tensors_allocate_what_a_call_allocates(case: dict[str, Any], has_gradients: bool):
    case = dict(case)
    needs_x = case.pop("needs_x", True)
    stock = Stock(**{"inputs": 24, **case})
    sizes: dict[str, list[int]] = {}
    for device in ("cpu", "meta"):
        native = stock.native().to(device)
        for parameter in native.parameters():
            parameter.grad = torch.empty_like(parameter) if has_gradients else None
        x = torch.empty(2, stock.inputs, 9, 11, device=device, requires_grad=needs_x)
        with Allocations(sizes.setdefault(device, [])):
            out = native(x)
            out.backward(torch.empty_like(out))
    assert sizes["cpu"] == sizes["meta"] and len(sizes["cpu"]) > 10


@pytest.mark.parametrize("norm", ["gn", "bn_frozen"])
@pytest.mark.parametrize("blocks", [None, 2])
def test_a_network_that_trains_as_a_whole_equals_stock(norm: Any, blocks: int | None):
    step = TrainingStep.of("tinytl_tiny", norm, "full", 2, 32, 10)
    step = replace(step, blocks=blocks, plan=EnginePlan(micro_batch=1))
    stock: Any = build_network(step.spec).double()
    stock.drop_rate = 0.0
    prepare(stock, step)
    lean = copy.deepcopy(stock)
    engage(stock, replace(step, engine="stock"))
    engage(lean, step)
    assert lean_report(lean).native == ("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    stock(x).square().sum().backward()
    for image in x:
        lean(image[None]).square().sum().backward()
    expected, found = (
        {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        for network in (stock, lean)
    )
    assert_close(found, expected)  # type: ignore[arg-type]
    trained = {name: value for name, value in stock.state_dict().items() if name in expected}
    lean.load_state_dict(trained, strict=False)
    assert trained.keys() <= lean.state_dict().keys()


def test_weights_of_another_type_or_shape_are_refused():
    native, x = Stock().native(), torch.randn(1, 6, 9, 11)
    weight = native.get_parameter("conv_dw.weight")
    for other in (weight.double(), weight[:8]):
        with pytest.raises(ValueError, match="cannot use one"):
            torch.func.functional_call(native, {"conv_dw.weight": other}, x)


def test_parameters_can_be_replaced_for_a_call():
    torch.manual_seed(0)
    stock = Stock().double()
    native, x = stock.native(), torch.randn(1, 6, 9, 11, dtype=torch.float64)
    other = {name: p.detach() * 2 + 0.1 for name, p in stock.named_parameters()}
    expected = torch.func.functional_call(stock, other, x)
    torch.testing.assert_close(torch.func.functional_call(native, other, x), expected)

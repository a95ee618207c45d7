"""Squeeze and excitation inside the native bottleneck, against timm's own blocks and networks in float64."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from frozen_layers import Allocations, frozen_conv, relative_errors
from test_engine import assert_same_gradients, stock
from timm.layers.activations import Sigmoid
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from tinytl.engine import EnginePlan, lean_report, make_lean
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.compiled_kernels import choose_kernels
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.bottleneck_sizes import FILTERED
from tinytl.errors import UserError
from tinytl.networks.norms import GroupNorm

PLAN = EnginePlan()
KERNELS = choose_kernels("auto")


def timm_block(
    inputs: int = 6, outputs: int = 16, kernel: int = 3, stride: int = 1, group: int = 8, width: int = 24,
    act: type[nn.Module] = nn.SiLU, gate: type[nn.Module] = Sigmoid, hidden: int = 7, expand: bool = True,
    squeeze_act: type[nn.Module] | None = None, quantize: str = "int8", padding: str = "",
    trains: str = "nothing",
) -> Any:  # fmt: skip
    """One of timm's blocks in float64, norms and biases away from where they begin.

    Its weights are frozen, except those of the layers whose names begin with `trains`.
    """
    squeeze = partial(SqueezeExcite, rd_channels=hidden, gate_layer=gate, force_act_layer=squeeze_act)
    options: dict[str, Any] = {
        "norm_layer": partial(GroupNorm, group_size=group) if group else nn.BatchNorm2d,
        "dw_kernel_size": kernel, "stride": stride, "pad_type": padding, "act_layer": act,
        "se_layer": squeeze,
    }  # fmt: skip
    if expand:
        block: Any = InvertedResidual(inputs, outputs, exp_ratio=width / inputs, **options)
    else:
        block = DepthwiseSeparableConv(inputs, outputs, **options)
    block.double().eval()
    for name, tensor in block.state_dict().items():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 2) if "var" in name else tensor.add_(0.4 * torch.randn_like(tensor))
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith(trains):
            frozen_conv(module, quantize)
    return block


def native(block: Any, **settings: Any) -> NativeBottleneck:
    """The native block of the same parts, which share norms and biases, with other sizes of slices."""
    layer = NativeBottleneck.of(copy.copy(block), PLAN, KERNELS)
    assert layer is not None
    for name, value in settings.items():
        setattr(layer, name, value)
    return layer


def results(function: Any, block: Any, x: Tensor, grad: Tensor, needs_x: bool = True) -> list[Tensor]:
    """The output, and gradients with respect to x and to all that trains, by the names in timm's block."""
    x = x.detach().clone().requires_grad_(needs_x)
    parameters = [p for p in block.parameters() if p.requires_grad]
    out = function(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters] if needs_x else parameters, grad)]


HARD: dict[str, Any] = {"act": nn.Hardswish, "gate": nn.Hardsigmoid, "squeeze_act": nn.ReLU}
CASES: dict[str, dict[str, Any]] = {
    "SiLU": {},
    "hard swish": HARD,
    "stored statistics": {"group": 0},
    "hard swish, stored": {"group": 0, **HARD},
    "stride 2": {"stride": 2, "kernel": 5},
    "stride 2, stored": {"stride": 2, "group": 0, **HARD},
    "shortcut": {"inputs": 8, "outputs": 8},
    "shortcut, stored": {"outputs": 6, "group": 0},
    "groups wider than a vector": {"group": 20, "width": 40, "inputs": 5, "outputs": 20},
    "no expansion": {"expand": False, "inputs": 24},
    "no expansion, stored, stride 2": {"expand": False, "inputs": 20, "group": 0, "stride": 2, **HARD},
    "padding in the lanes": {"group": 5, "width": 40, "inputs": 5, "outputs": 15, **HARD},
    "k-means": {"group": 5, "width": 40, "inputs": 5, "outputs": 15, "quantize": "kmeans"},
    "floating point": {"quantize": "off", "group": 0},
    "more hidden channels than a vector": {"hidden": 37, "width": 66, "inputs": 6, "group": 2},
    "TensorFlow's padding": {"padding": "same", "stride": 2},
    "ReLU": {"act": nn.ReLU, "group": 0},
    "image without gradient": {"needs_x": False},
    "all weights train": {"trains": ""},
    "all weights train, stored": {"trains": "", "group": 0, "stride": 2, **HARD},
    "all weights train, no expansion": {"trains": "", "expand": False, "inputs": 24},
    "all weights train, image without gradient": {"trains": "", "needs_x": False},
    "all weights train, padding in the lanes": {
        "trains": "", "group": 5, "width": 40, "inputs": 5, "outputs": 15, "hidden": 37,
    },
    "convolutions train": {"trains": "conv"},
    "squeeze and excitation trains": {"trains": "se"},
    "the excitation's weight trains": {"trains": "se.conv_expand"},
}  # fmt: skip
HALF = -1  # stands for just what the filtered maps and their gradients take
SIZES: dict[str, dict[str, Any]] = {
    "all held": {"held_bytes": 1e9},
    "filtered maps held": {"held_bytes": HALF},
    "nothing held": {"held_bytes": 0},
    "nothing held, small slices": {"held_bytes": 0, "slice_bytes": 1.0},
    "all held, small slices, third pass": {"held_bytes": 1e9, "slice_bytes": 1.0, "keep_projection": False},
    "nothing held, third pass": {"held_bytes": 0, "keep_projection": False},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_those_of_timms_block(name: str, size: str):
    torch.manual_seed(0)
    case, settings = dict(CASES[name]), dict(SIZES[size])
    needs_x = case.pop("needs_x", True)
    block = timm_block(**case)
    lean = native(block, **settings)
    x = torch.randn(2, lean.in_channels, 9, 11, dtype=torch.float64)
    if lean.sizes.held_bytes == HALF:
        area = lean.sizes.geometry(x, True, needs_x).window.out_area
        lean.sizes.held_bytes = 2 * 8 * area * lean.packing.lanes
        assert lean.sizes.geometry(x, True, needs_x).held == FILTERED
    grad = torch.randn_like(block(x))
    found, expected = (results(function, block, x, grad, needs_x) for function in (lean, block))
    assert max(relative_errors(found, expected)) < 1e-9

    exact, block = expected, block.float()
    lean.float()
    own, theirs = (results(f, block, x.float(), grad.float(), needs_x) for f in (lean, block))
    assert max(relative_errors(own, exact)) < 4 * max(relative_errors(theirs, exact)) + 1e-6


@pytest.mark.parametrize("biases", [True, False])
def test_what_is_frozen_gets_no_gradient_and_leaves_the_others_as_they_are(biases: bool):
    torch.manual_seed(0)
    block = timm_block(group=0)
    for name, parameter in block.named_parameters():
        trains = name.endswith("bias") and (biases or not name.startswith("se."))
        parameter.requires_grad_(trains)
    lean = native(block)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    grad = torch.randn_like(block(x))
    found, expected = (results(function, block, x, grad) for function in (lean, block))
    assert max(relative_errors(found, expected)) < 1e-9
    names = {name for name, p in block.named_parameters() if p.requires_grad}
    assert names == {name for name, p in lean.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trains", ["nothing", ""])
def test_results_do_not_depend_on_the_number_of_threads(trains: str):
    torch.manual_seed(0)
    block = timm_block(trains=trains).float()
    lean = native(block)
    x = torch.randn(5, 6, 12, 12)
    grad = torch.randn_like(block(x))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(lean, block, x, grad)
        torch.set_num_threads(3)
        together = results(lean, block, x, grad)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("trains", ["nothing", ""])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_meta_tensors_allocate_what_a_call_allocates(trains: str, has_gradients: bool):
    sizes: dict[str, list[int]] = {}
    for device in ("cpu", "meta"):
        lean = native(timm_block(trains=trains)).to(device)
        for parameter in lean.parameters():
            parameter.grad = torch.empty_like(parameter) if has_gradients else None
        x = torch.empty(2, 6, 9, 11, device=device, dtype=torch.float64, requires_grad=True)
        with Allocations(sizes.setdefault(device, [])):
            out = lean(x)
            out.backward(torch.empty_like(out))
    assert sizes["cpu"] == sizes["meta"] and len(sizes["cpu"]) > 5


def test_gradients_of_images_are_added_in_place_where_autograd_would_add_them():
    torch.manual_seed(0)
    block = timm_block(trains="")
    lean = native(copy.deepcopy(block))
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64)
    grad = torch.randn_like(block(x))
    block(x).backward(grad)
    lean(x[:1]).backward(grad[:1])
    before = {name: p.grad for name, p in lean.named_parameters()}
    for image in (1, 2):
        lean(x[image : image + 1]).backward(grad[image : image + 1])
    found = dict(lean.named_parameters())
    names = [name for name, p in block.named_parameters() if p.requires_grad]
    assert set(names) == set(found) and all(before[name] is p.grad for name, p in found.items())
    gradients, expected = ([m[name].grad for name in names] for m in (found, dict(block.named_parameters())))
    assert max(relative_errors(gradients, expected)) < 1e-9  # type: ignore[arg-type]


def test_unknown_parts_are_left_to_other_layers():
    assert BottleneckParts.of(timm_block(gate=nn.Tanh), PLAN, KERNELS) is not None
    assert NativeBottleneck.of(timm_block(gate=nn.Tanh), PLAN, KERNELS) is None


def test_hooks_on_its_layers_are_refused():
    block = timm_block()
    lean = native(block)
    assert lean.se is not None
    lean.se.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="hooks"):
        lean(torch.randn(1, 6, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("method", ["bias", "tinytl", "full"])
@pytest.mark.parametrize("norm", ["bn_frozen", "gn"])
@pytest.mark.parametrize(
    ("model", "resolution"),
    [("mobilenetv3_small_100", 64), ("mobilenetv3_large_100", 64), ("efficientnet_b0", 96)],
)
def test_gradients_of_whole_networks(model: str, resolution: int, norm: Any, method: str):
    network = stock(model, norm, method)
    lean = assert_same_gradients(network, PLAN, 1e-9, resolution)
    report = lean_report(lean)
    assert not report.recomputed and not any(isinstance(m, SqueezeExcite) for m in lean.modules())
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name, p in lean.named_parameters() if p.requires_grad} == names


def test_gradients_of_images_held_as_little_as_can_be():
    """Nothing of an image is held between the passes, and its projections are computed again."""
    network = stock("efficientnet_b0", "gn", "tinytl")
    lean = make_lean(copy.deepcopy(network), EnginePlan(keep_projection=False))
    for module in lean.modules():
        if isinstance(module, NativeBottleneck):
            module.sizes.held_bytes = 0
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for net in (network, lean):
        net(images).square().sum().backward()
    grads = {name: p.grad for name, p in lean.named_parameters()}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert (grads[name] - parameter.grad).norm() <= 1e-9 * parameter.grad.norm(), name


def test_without_compiled_operators_such_blocks_are_not_sliced():
    """Slices know clamps alone, and a block of clamps with squeeze and excitation is more than that."""
    lean = assert_same_gradients(stock("semnasnet_100", "bn_frozen", "bias"), EnginePlan(compile="off"), 1e-9)
    report = lean_report(lean)
    assert report.sliced and report.recomputed and not report.native


def test_autocast_keeps_means_in_the_type_of_the_norms():
    torch.manual_seed(0)
    block = timm_block().float()
    lean = native(block)
    x = torch.randn(2, 6, 12, 12)
    grad = torch.randn_like(block(x))
    exact = results(block, block, x, grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(lambda x: lean(x).float(), block, x, grad)
    assert max(relative_errors(found, exact)) < 0.02

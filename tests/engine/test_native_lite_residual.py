"""The native lite residual computes what stock PyTorch does: outputs and all gradients, in float64."""

import copy
import shutil
from typing import Any

import pytest
import torch
from timm.layers import GroupNormAct
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from tinytl.engine.native.block import NativeLiteResidualBlock
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.lite_residual import NativeLiteResidual
from tinytl.engine.native.norms import ACTIVATIONS
from tinytl.errors import UserError
from tinytl.networks.lite_residual import LiteResidual, LiteResidualBlock, LiteResidualConfig
from tinytl.networks.norms import GroupNorm, standardize_weights

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _threads():
    """A test may set the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def randomize(module: Any) -> Any:
    """Scales, shifts and stored statistics away from 1 and 0."""
    norm: Any
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.5)
        if isinstance(norm, nn.BatchNorm2d):
            norm.get_buffer("running_mean").normal_(0, 0.3)
            norm.get_buffer("running_var").uniform_(0.5, 2)
            norm.eval()
    return module


def make(inputs, outputs, stride=1, kernel=3, norm: Any = "gn", standardized=True, **config) -> Any:
    torch.manual_seed(0)
    lite = LiteResidual(inputs, outputs, stride, kernel, LiteResidualConfig(**config), norm, 1e-5)
    if standardized:
        standardize_weights(lite)
    return randomize(lite).double()


def native_of(lite) -> Any:
    return NativeLiteResidual(lite)


def inputs_of(lite, height, width, out_size, images=3):
    x = torch.randn(images, lite.conv1.in_channels, height, width, dtype=torch.double)
    out_shape = (images, lite.conv2.out_channels, *out_size)
    return x, torch.randn(out_shape, dtype=torch.double), torch.randn(out_shape, dtype=torch.double)


def run(module, function, x, grad):
    """The output, and gradients with respect to x and every parameter."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = function(x)
    out.backward(grad)
    return {"out": out.detach(), "x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def run_both(lite, native, x, before, grad):
    size = before.shape[2:]
    stock = run(lite, lambda x: lite(x, size), x, grad)
    return stock, run(native, lambda x: native(x, size), x, grad)


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def worst(found, expected):
    assert found.keys() == expected.keys()
    return max(error(found[name], expected[name]) for name in expected)


# The lanes hold 8, 16, 20, 40 and 48 channels of a group in full, half or not at all; maps have odd sides.
CASES = {
    "stride": ((16, 32, 2, 5), {}, (20, 20)),
    "wide": ((32, 24, 1, 5), {}, (28, 28)),
    "half a vector": ((40, 40, 1, 5), {}, (28, 14)),
    "odd": ((40, 80, 2, 5), {}, (27, 13)),
    "small map": ((96, 33, 1, 3), {}, (7, 7)),
    "groups": ((6, 10, 1, 3), {"groups": 3, "pooling": 1, "upsampling": "nearest"}, (9, 11)),
    "one group": ((5, 7, 2, 7), {"groups": 1, "pooling": 3, "standardized": False}, (17, 12)),
    "depthwise": ((24, 10, 1, 3), {"groups": 24}, (7, 5)),
    "pointwise": ((12, 12, 2, 1), {"groups": 2}, (9, 9)),
    "grown": ((8, 16, 1, 3), {"expansion": 2.5}, (8, 8)),
    "stored": ((24, 10, 2, 5), {"norm": "bn_frozen", "standardized": False}, (15, 16)),
    "one pixel": ((16, 8, 2, 3), {}, (1, 1)),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request):
    arguments, options, (height, width) = request.param
    lite = make(*arguments, **options)
    stride = arguments[2]
    return lite, *inputs_of(lite, height, width, (-(-height // stride), -(-width // stride)))


def test_output_and_gradients_equal_stocks(case):
    lite, x, before, grad = case
    assert NativeLiteResidual.supports(lite)
    stock, native = run_both(lite, native_of(copy.deepcopy(lite)), x, before, grad)
    assert worst(native, stock) < 1e-12


def test_float32_is_as_close_to_float64_as_stock_is(case):
    lite, x, before, grad = case
    exact = run(lite, lambda x: lite(x, before.shape[2:]), x, grad)
    single = copy.deepcopy(lite).float()
    native = native_of(copy.deepcopy(single))
    stock, found = run_both(single, native, x.float(), before.float(), grad.float())
    assert worst(found, exact) < 4 * worst(stock, exact) + 1e-6


@pytest.mark.parametrize("per_group", [1, 3, 8, 24])
def test_groups_of_any_size(per_group):
    lite = make(24, 24, kernel=3)
    lite.bn1, lite.final_bn = (randomize(GroupNorm(24, per_group)).double() for _ in range(2))
    stock, native = run_both(lite, native_of(copy.deepcopy(lite)), *inputs_of(lite, 10, 10, (10, 10)))
    assert worst(native, stock) < 1e-12


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_every_ratio_of_sizes(upsampling):
    lite = make(2, 2, kernel=1, pooling=1, upsampling=upsampling)
    native = native_of(copy.deepcopy(lite))
    for before in (1, 2, 3, 5, 7, 14):
        x = torch.randn(1, 2, before, before, dtype=torch.double)
        for after in (*range(1, 24), 28, 56):
            with torch.no_grad():
                assert torch.allclose(native(x, (after, after)), lite(x, (after, after)), atol=1e-12, rtol=0)


def test_any_number_of_threads_gives_the_same_bits():
    lite = native_of(make(40, 24, kernel=5).float())
    x, _, grad = (tensor.float() for tensor in inputs_of(lite, 14, 14, (14, 14), images=5))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run(lite, lambda x: lite(x, (14, 14)), x, grad))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


def test_writes_nothing_behind_its_buffers(monkeypatch, case):
    lite, x, before, grad = case
    empty, made = torch.Tensor.new_empty, []

    def guarded(self, *size):
        count = torch.Size(size[0] if isinstance(size[0], tuple) else size).numel()
        whole = empty(self, count + 64).fill_(12345.0)
        made.append(whole[count:])
        return whole[:count].view(*size)

    native = native_of(lite)
    monkeypatch.setattr(torch.Tensor, "new_empty", guarded)
    for dtype in (torch.double, torch.float):
        out = before.clone().to(dtype)
        run(native.to(dtype), lambda x, out=out: native(x, out.shape[2:]), x.to(dtype), grad.to(dtype))
    monkeypatch.undo()
    assert len(made) >= 14
    assert all((behind == 12345.0).all() for behind in made)


def test_on_the_meta_device_takes_the_same_memory():
    lite = native_of(make(16, 16, stride=2, kernel=5))
    x, before, grad = inputs_of(lite, 20, 20, (10, 10))
    real = lite.add(x, before, lite.tensors(), lite.stored_statistics())
    meta = copy.deepcopy(lite).to("meta")
    kept = meta.add(x.to("meta"), before.to("meta"), meta.tensors(), meta.stored_statistics())
    assert [tensor.shape for tensor in kept] == [tensor.shape for tensor in real]
    found = run(meta, lambda x: meta(x, (10, 10)), x.to("meta"), grad.to("meta"))
    assert found["conv1.weight"].shape == lite.conv1.weight.shape


def test_adds_gradients_in_place():
    lite = native_of(make(8, 8))
    x, _, grad = inputs_of(lite, 8, 8, (8, 8))
    first = run(lite, lambda x: lite(x, (8, 8)), x, grad)
    once, target = first["conv1.weight"].clone(), lite.conv1.weight.grad
    lite(x, (8, 8)).backward(grad)
    assert lite.conv1.weight.grad is target
    assert torch.allclose(target, 2 * once)


def test_gradients_that_are_asked_for_are_returned():
    """torch.autograd.grad returns them and leaves `.grad` alone."""
    lite = native_of(make(8, 8))
    x, _, grad = inputs_of(lite, 8, 8, (8, 8))
    lite(x, (8, 8)).backward(grad)
    once = lite.conv1.weight.grad.clone()
    (asked,) = torch.autograd.grad(lite(x, (8, 8)), lite.conv1.weight, grad)
    assert torch.equal(asked, once) and torch.equal(lite.conv1.weight.grad, once)


def test_gradients_do_not_bypass_hooks():
    lite = native_of(make(8, 8))
    x, _, grad = inputs_of(lite, 8, 8, (8, 8))
    lite(x, (8, 8)).backward(grad)
    once = lite.conv1.weight.grad.clone()
    lite.conv1.weight.register_hook(lambda gradient: 10 * gradient)
    lite(x, (8, 8)).backward(grad)
    assert torch.allclose(lite.conv1.weight.grad, 11 * once)


def test_gradients_that_are_not_needed():
    lite = native_of(make(8, 8))
    x, _, grad = inputs_of(lite, 8, 8, (8, 8))
    whole = run(lite, lambda x: lite(x, (8, 8)), x, grad)
    lite.conv1.requires_grad_(False)
    lite.zero_grad()
    lite(x, (8, 8)).backward(grad)  # nor that with respect to x
    assert lite.conv1.weight.grad is None
    assert torch.equal(lite.conv2.weight.grad, whole["conv2.weight"])


def test_an_empty_batch():
    lite = native_of(make(8, 8))
    x, _, grad = inputs_of(lite, 8, 8, (8, 8), images=0)
    found = run(lite, lambda x: lite(x, (8, 8)), x, grad)
    assert all(not gradient.any() for gradient in found.values())


def test_channels_last():
    lite = make(8, 8)
    native = native_of(copy.deepcopy(lite)).to(memory_format=torch.channels_last)
    x, before, grad = inputs_of(lite, 8, 8, (8, 8))
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, before, grad)]
    stock = run(lite, lambda x: lite(x, (8, 8)), x, grad)
    found = run(native, lambda x: native(x, (8, 8)), last[0], last[2])
    assert worst(found, stock) < 1e-12


@pytest.mark.parametrize("shape", [(2, 7, 8, 8), (8, 8, 8)])
def test_inputs_that_do_not_fit_are_refused(shape):
    lite = native_of(make(8, 8))
    with pytest.raises(ValueError, match="8 to 8 channels"):
        lite(torch.randn(shape, dtype=torch.double), (8, 8))


def test_an_input_of_another_type_is_refused():
    with pytest.raises(UserError, match="the input is float32, but the weights are float64"):
        native_of(make(8, 8))(torch.randn(2, 8, 8, 8), (8, 8))


def test_under_autocast_the_input_is_kept_as_it_came():
    """In bfloat16, and the gradient with respect to it comes back so."""
    lite: Any = make(8, 8).float()
    saved: list[Any] = []
    native = native_of(copy.deepcopy(lite))
    x: Any = torch.randn(2, 8, 8, 8).bfloat16().requires_grad_()
    keep = saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), keep:
        out = native(x, (8, 8))
    assert out.dtype == torch.bfloat16
    assert [tensor.dtype for tensor in saved if tensor.shape == x.shape] == [torch.bfloat16]
    out.sum().backward()
    exact: Any = x.detach().double().requires_grad_()
    copy.deepcopy(lite).double()(exact, (8, 8)).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert (x.grad - exact.grad).norm() < 0.02 * exact.grad.norm()


def test_a_functional_call_uses_its_parameters():
    lite = make(8, 8)
    native, other = native_of(copy.deepcopy(lite)), make(8, 8)
    parameters = {name: 2 * p.detach().clone() + 0.1 for name, p in other.named_parameters()}
    x = torch.randn(2, 8, 8, 8, dtype=torch.double)
    found, expected = (torch.func.functional_call(m, parameters, (x, (8, 8))) for m in (native, lite))
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda lite: setattr(lite, "act", nn.ReLU6()),
        lambda lite: setattr(lite.conv1, "stride", (3, 3)),
        lambda lite: setattr(lite.conv1, "padding_mode", "reflect"),
        lambda lite: setattr(lite, "bn1", nn.BatchNorm2d(8)),  # in training mode
        lambda lite: setattr(lite, "bn1", nn.LayerNorm(8)),
        lambda lite: lite.half(),
        lambda lite: lite.conv2.register_forward_hook(lambda *_: None),
    ],
)
def test_leaves_the_rest_to_stock_layers(change):
    lite = make(8, 8)
    assert NativeLiteResidual.supports(lite)
    change(lite)
    assert not NativeLiteResidual.supports(lite)


@pytest.mark.parametrize("norm", ["gn", "bn_frozen"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_of_both_branches(norm, stride):
    torch.manual_seed(0)
    lite = make(16, 16, stride, norm=norm)
    main: Any = InvertedResidual(16, 16, stride=stride, exp_ratio=3, act_layer=nn.ReLU6, norm_layer=_norm_act)
    if norm == "bn_frozen":
        main: Any = InvertedResidual(16, 16, stride=stride, exp_ratio=3, act_layer=nn.ReLU6)
    for conv in (main.conv_pw, main.conv_dw, main.conv_pwl):
        conv.requires_grad_(False)
    block = LiteResidualBlock(randomize(main).double().eval(), lite)
    copied: Any = copy.deepcopy(block)
    norms = {f"bn{i}": getattr(copied.main_branch, f"bn{i}") for i in (1, 2, 3)}
    acts = [ACTIVATIONS[type(norms[name].act)] for name in ("bn1", "bn2")]
    branch = copied.main_branch
    native = NativeLiteResidualBlock(
        NativeBottleneck(branch.conv_pw, branch.conv_dw, branch.conv_pwl, norms, acts, branch.has_skip),
        NativeLiteResidual(copied.lite_residual),
    )
    x = torch.randn(3, 16, 12, 12, dtype=torch.double)
    grad = torch.randn(3, 16, 12 // stride, 12 // stride, dtype=torch.double)
    stock, found = (
        {name: gradient for name, gradient in run(module, module, x, grad).items() if gradient is not None}
        for module in (block, native)
    )
    assert worst(found, stock) < 1e-9


def _norm_act(channels, act_layer=nn.ReLU6, apply_act=True, **_):
    return GroupNormAct(channels, channels // 8, act_layer=act_layer, apply_act=apply_act)

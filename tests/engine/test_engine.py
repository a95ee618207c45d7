"""The lean engine has the same gradients as stock PyTorch, in the memory that it promises."""

import copy
import os
import runpy
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from processes import ROOT

from tinytl.assembly import TrainingStep
from tinytl.engine import EnginePlan, make_lean
from tinytl.engine.bits import pack, unpack
from tinytl.engine.compiled_kernels import compiled_kernels
from tinytl.engine.kernels import Clamp, Kernels
from tinytl.engine.optimizer import adam
from tinytl.errors import UserError
from tinytl.memory.step import build, lower_bound, metered
from tinytl.methods import METHODS, freeze, set_train_mode
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import WS_EPS, standardize
from tinytl.networks.quantize import QuantizeName, quantize_frozen
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

NORMS = ["gn", "bn_frozen", "bn"]
SPINE = [
    *("proxylessnas_mobile", "proxylessnas_cpu", "proxylessnas_gpu", "mobilenetv2_100", "mobilenetv2_140"),
    *("mnasnet_100", "efficientnet_lite0", "resnet50", "inception_v3"),
]
SLICES = EnginePlan(slice_kb=30.0)


def stock(model, norm, method, quantize: QuantizeName = "int8", dtype=torch.float64):
    """A network with all its parameters and statistics away from where they begin."""
    lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
    network = build_network(NetworkSpec(model, norm, 10, lite, 0.0)).to(dtype)
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            tensor.add_(0.2 * (torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor)))
    freeze(network, method)
    quantize_frozen(network, quantize)
    set_train_mode(network, norm)
    return network


def gradients(network, images, micro_batch):
    """Of the mean loss over all images, by name; and the mean loss."""
    labels, total = torch.arange(len(images), device=images.device) % 10, 0.0
    for part in range(0, len(images), micro_batch):
        chosen = slice(part, part + micro_batch)
        loss = F.cross_entropy(network(images[chosen]), labels[chosen], reduction="sum") / len(images)
        loss.backward()
        total += loss.item()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    for parameter in network.parameters():
        parameter.grad = None
    return found, total


def assert_same_gradients(network, plan, tolerance, resolution=64, count=4):
    side = (resolution, resolution)
    images = torch.randn(count, 3, *side).to(next(network.parameters()))  # its type and device
    lean = make_lean(copy.deepcopy(network), plan)
    expected, loss = gradients(network, images, len(images))
    found, lean_loss = gradients(lean, images, plan.micro_batch or len(images))
    assert lean_loss == pytest.approx(loss, rel=tolerance)
    assert found.keys() == expected.keys()
    # a shift before a norm with batch statistics has no gradient but its rounding
    floor = 1e-4 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp_min(floor)
        assert error < tolerance, name
    return lean


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_method_and_norm(method, norm):
    assert_same_gradients(stock("proxylessnas_w03", norm, method), SLICES, 1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", ["proxylessnas_w03", "mobilenetv2_100"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["tinytl", "bias", "full"])
def test_gradients_on_a_gpu(method, norm, model):
    assert_same_gradients(stock(model, norm, method).cuda(), SLICES, 1e-9)


PLANS = [
    EnginePlan(compile="off"),
    EnginePlan(recompute_above_px=8),
    EnginePlan(recompute_above_px=None, slice_kb=None),
    EnginePlan(keep_projection=False),
]
OTHERS = ["proxylessnas_mobile", "mobilenetv2_100", "resnet18", "inception_v3", "tf_mobilenetv3_small_100"]
SOME = [("gn", "tinytl"), ("bn_frozen", "norm_last"), ("bn", "bias")]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("norm", "method"), SOME)
def test_gradients_of_every_kind_of_plan(plan, norm, method):
    assert_same_gradients(stock("proxylessnas_w03", norm, method), plan, 1e-9)


@pytest.mark.parametrize(("norm", "method"), SOME)
@pytest.mark.parametrize("model", OTHERS)
def test_gradients_of_other_models(model, norm, method):
    method = "full" if (model, method) == ("inception_v3", "tinytl") else method
    resolution = 96 if model == "inception_v3" else 64
    count = 4 if norm == "bn" else 2  # batch statistics of two pixels would amplify rounding
    assert_same_gradients(stock(model, norm, method), SLICES, 1e-9, resolution, count)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", SPINE)
def test_gradients_of_every_model_method_and_norm(model, norm, method):
    if model == "inception_v3" and METHODS[method].needs_lite_residual:
        pytest.skip("inception_v3 takes no lite residual modules")
    assert_same_gradients(stock(model, norm, method), SLICES, 1e-9, 96 if model == "inception_v3" else 64)


@pytest.mark.parametrize("norm", ["gn", "bn_frozen"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_gradients_of_micro_batches(norm, micro_batch):
    plan = EnginePlan(micro_batch=micro_batch, slice_kb=30.0)
    assert_same_gradients(stock("proxylessnas_w03", norm, "tinytl"), plan, 1e-9)


@pytest.mark.parametrize("quantize", ["kmeans", "off"])
def test_gradients_with_other_frozen_weights(quantize):
    assert_same_gradients(stock("proxylessnas_w03", "gn", "tinytl", quantize), SLICES, 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_in_float32(method):
    """They are as close to float64 as stock PyTorch's are.

    For some inputs, rounding puts an element on the other side of ReLU6's kink; so the median is compared.
    """
    network = stock("proxylessnas_w03", "gn", method, dtype=torch.float32)
    exact, lean = copy.deepcopy(network).double(), make_lean(copy.deepcopy(network), EnginePlan())
    errors = {network: [], lean: []}
    for images in torch.randn(5, 4, 3, 64, 64):
        expected, _ = gradients(exact, images.double(), 4)
        for each, found in errors.items():
            found.append(worst_error(gradients(each, images, 4)[0], expected))
    of_stock, of_lean = (statistics.median(found) for found in errors.values())
    assert of_lean < 2 * of_stock < 2e-4


def worst_error(found, expected):
    """The largest relative error of a tensor."""
    return max(((found[name].double() - g).norm() / g.norm()).item() for name, g in expected.items())


def test_batch_statistics_move_once():
    """Recomputation runs a block's forward pass twice; its running statistics move once."""
    network = stock("proxylessnas_w03", "bn", "full")
    lean = assert_same_gradients(network, SLICES, 1e-9)
    moved = dict(lean.named_buffers())
    for name, statistic in network.named_buffers():
        torch.testing.assert_close(moved[name], statistic, msg=name)


def test_trainable_parameters_keep_their_names():
    network = stock("proxylessnas_w03", "gn", "tinytl")
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    lean = make_lean(network, EnginePlan())
    assert {name for name, _ in lean.named_parameters() if _.requires_grad} == names


def test_frozen_weights_take_a_byte_each():
    network = stock("proxylessnas_w03", "gn", "last", dtype=torch.float32)
    frozen = sum(p.numel() for p in network.parameters() if p.ndim > 1 and not p.requires_grad)
    lean = make_lean(network, EnginePlan())
    codes = [p for p in lean.parameters() if p.dtype in (torch.int8, torch.uint8)]
    assert sum(p.numel() for p in codes) == frozen
    assert sum(p.untyped_storage().nbytes() for p in codes) < 1.02 * frozen  # channels are packed in sixteens


SMALL = EnginePlan(micro_batch=1, slice_kb=400.0, keep_projection=False)


@pytest.mark.parametrize(
    ("method", "batch_size", "plan", "at_most_mb"),
    [
        ("tinytl", 8, SMALL, 47),
        ("tinytl", 8, EnginePlan(recompute_above_px=28, slice_kb=2000.0), 580 / 3),
        ("bias", 8, SMALL, 16),
        ("last", 8, SMALL, 30.8),  # the paper's count
    ],
)
def test_measured_memory(method, batch_size, plan, at_most_mb):
    """ProxylessNAS-Mobile, GN + weight standardisation, 224 px, 102 classes, Adam; everything counted."""
    what = TrainingStep.of("proxylessnas_mobile", "gn", method, batch_size, 224, 102)
    report = second_step(what, plan)
    assert report.peak_mb <= at_most_mb


@pytest.mark.parametrize(("batch_size", "at_most_mb"), [(8, 37), (1, 24)])
def test_measured_memory_with_8_bit_adam(batch_size, at_most_mb):
    pytest.importorskip("bitsandbytes")
    plan = replace(SMALL, optimizer_bits=8, step_in_backward=batch_size == 1)
    what = TrainingStep.of("proxylessnas_mobile", "gn", "tinytl", batch_size, 224, 102)
    assert second_step(what, plan).peak_mb <= at_most_mb


def second_step(what, plan):
    step = replace(what, plan=plan)
    network, optimizer = build(step)
    metered(step, network, optimizer)
    report = metered(step, network, optimizer)
    assert report.peak_bytes >= lower_bound(step)
    return report


def test_stepping_in_the_backward_pass_is_the_same_step():
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    after = []
    for plan in (EnginePlan(), EnginePlan(step_in_backward=True)):
        network = stock("proxylessnas_w03", "gn", "tinytl", dtype=torch.float32)
        optimizer = adam((p for p in network.parameters() if p.requires_grad), 1e-2, 0.0, plan)
        for _ in range(2):
            F.cross_entropy(network(images), labels).backward()
            gradients_left = [p for p in network.parameters() if type(p.grad) is torch.Tensor]
            assert bool(gradients_left) != plan.step_in_backward
            optimizer.step()
            optimizer.zero_grad()
        after.append(network.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_what_cannot_work_says_so():
    network = stock("proxylessnas_w03", "gn", "bias")
    hook = network.blocks[1][0].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"blocks\.1\.0 has hooks"):
        make_lean(network, EnginePlan())
    hook.remove()
    make_lean(network, EnginePlan())
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    network.blocks[1][0].bn1.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="hooks"):
        network(images)
    with pytest.raises(UserError, match=r"micro_batch=3 does not divide batch_size=8"):
        EnginePlan(micro_batch=3).micro_batches(8)
    with pytest.raises(UserError, match="step_in_backward"):
        EnginePlan(micro_batch=2, step_in_backward=True).micro_batches(8)


GEOMETRIES = [(2, 16, 13, 11, 3, 1, 1, 8), (1, 24, 14, 14, 5, 2, 2, 8), (3, 8, 9, 12, 7, 2, 3, 4),
              (2, 16, 7, 7, 7, 1, 3, 8), (1, 8, 1, 1, 3, 1, 1, 8), (2, 6, 5, 5, 3, 3, 1, 3)]  # fmt: skip


@pytest.mark.parametrize("kernels", [Kernels, compiled_kernels])
@pytest.mark.parametrize(("n", "c", "h", "w", "k", "stride", "padding", "per_group"), GEOMETRIES)
@pytest.mark.parametrize("stored", [False, True])
def test_operators_against_autograd(kernels, n, c, h, w, k, stride, padding, per_group, stored):
    """Norm, ReLU6, depthwise convolution, and back, beside PyTorch's own in float64."""
    torch.manual_seed(0)
    x, scale, shift = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((n, c, h, w), c, c))
    weight = torch.randn(c, 1, k, k, dtype=torch.float64)
    mean, variance = torch.randn(c, dtype=torch.float64), torch.rand(c, dtype=torch.float64) + 0.5
    if stored:
        normed = F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
    else:
        normed = F.group_norm(x, c // per_group, scale, shift, 1e-3)
    expected = F.conv2d(F.relu6(normed), weight, None, stride, padding, groups=c)
    grad = torch.randn_like(expected)
    by_expected = torch.autograd.grad(expected, (x, scale, shift), grad)

    operators, act = kernels(), Clamp(0.0, 6.0)
    with torch.no_grad():
        xhat = x.clone()
        if stored:
            rstd, per_group = (variance + 1e-3).rsqrt(), 0
            operators.affine_clamp_(xhat, rstd, -mean * rstd, Clamp(-float("inf"), float("inf")))
        else:
            rstd = operators.group_normalize_(xhat, per_group, 1e-3)
        out = operators.act_depthwise(xhat, scale, shift, act, weight, stride, padding)
        by_x = operators.depthwise_backward(grad, weight, (h, w), stride, padding)
        sums = operators.norm_act_backward_(by_x, xhat, scale, shift, rstd, per_group, act)
    for found, wanted in zip((out, by_x, *sums), (expected, *by_expected), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kernels", [Kernels, compiled_kernels])
def test_weight_operators_against_autograd(kernels):
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(weight)
    expected = standardize(weight)
    (by_expected,) = torch.autograd.grad(expected, weight, grad)
    operators, plain = kernels(), weight.detach()
    torch.testing.assert_close(operators.standardize(plain, WS_EPS), expected)
    torch.testing.assert_close(operators.standardize_backward(plain, grad, WS_EPS), by_expected)
    codes = torch.randint(-127, 128, (5, 7), dtype=torch.int8)
    for shape in ((5, 1), (1, 7)):
        scale, shift = torch.rand(shape), torch.rand(shape)
        torch.testing.assert_close(operators.expand_codes(codes, scale, shift), codes * scale + shift)
        torch.testing.assert_close(operators.expand_codes(codes[:1], scale[:1], None), codes[:1] * scale[:1])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 4, 7, 7), (16,)])
def test_bits_survive_packing(shape):
    gate = torch.rand(shape) > 0.5
    packed = pack(gate)
    assert packed.numel() == -(-gate.numel() // 8)
    assert torch.equal(unpack(packed, gate.shape), gate)


def test_layers_keep_what_equation_2_needs():
    """dL/dW needs the layer's input, dL/db does not: frozen weights keep nothing, trainable ones that."""
    x = torch.randn(2, 64, 16, 16, requires_grad=True)
    for method, expected in (("bias", None), ("full", x.shape)):
        network = stock("resnet18", "bn_frozen", method, dtype=torch.float32)
        conv = make_lean(network, EnginePlan(recompute_above_px=None)).layer1[0].conv1
        node = conv(x).grad_fn
        saved = getattr(node, "_saved_input", None)  # a stock convolution's
        assert (None if saved is None else saved.shape) == expected
        assert expected or not getattr(node, "saved_tensors", ())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_under_a_limit_of_the_operating_system():
    """At 150 MB above idle the lean engine trains where stock PyTorch dies."""
    script = ROOT / "tests" / "memory_limit.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_wait_busily_for_a_short_time_only(monkeypatch, chosen, spins):
    """Unless the user has chosen how they wait; docs/reliability.md has what it is good for."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(ROOT / "src" / "tinytl" / "system" / "openmp.py"))
    assert os.environ.get("GOMP_SPINCOUNT") == spins

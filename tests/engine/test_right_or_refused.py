"""The lean engine is right, leaves a layer to stock PyTorch, or refuses in one line."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from lean_networks import IMAGES, PLAN, assert_same, frozen, gradients, lean_copy, own, tinytl_network
from torch import nn

from tinytl.engine import EnginePlan, lean_report, make_lean
from tinytl.engine.bottleneck import SlicedBottleneck
from tinytl.engine.frozen_layers import FrozenConv2d
from tinytl.engine.norms import LeanGroupNorm, StoredBatchNorm
from tinytl.engine.optimizer import adam
from tinytl.errors import UserError
from tinytl.methods import freeze, set_train_mode
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network


# SiLU, hard-swish, ReLU6, a norm of the activation's own
@pytest.mark.parametrize("model", ["efficientnet_b0", "mobilenetv3_small_100", "mobilenetv2_100", "resnet18"])
def test_train_leaves_frozen_statistics_frozen(model):
    network = frozen(model, drop_rate=0.0)
    lean = lean_copy(network)
    statistics = {name: b.clone() for name, b in lean.named_buffers() if "running" in name}
    lean.eval()
    lean.train()
    assert_same(network, lean)
    after = dict(lean.named_buffers())
    assert statistics and all(torch.equal(after[name], before) for name, before in statistics.items())


def test_train_leaves_layers_that_stay_stock_frozen():
    class Doubled(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    network = own(nn.Conv2d(3, 4, 3), Doubled(4), nn.BatchNorm2d(4, affine=False))
    lean = lean_copy(network)
    lean.train()
    assert not any(type(m) is StoredBatchNorm for m in lean.modules())
    assert_same(network, lean)
    assert torch.equal(lean[1].running_mean, network[1].running_mean)


@pytest.mark.parametrize("name", ["gn tinytl", "resnet18 full", "bn_frozen bias"])
def test_functional_call(name):
    """The gradients are those with respect to the parameters of the call, recomputed or not."""
    if name == "gn tinytl":
        network = tinytl_network()
    else:
        network = frozen("resnet18", name.split()[1]) if "18" in name else frozen("mobilenetv3_small_100")
    lean = lean_copy(network)
    assert lean_report(lean).recomputed or name != "resnet18 full"
    others = {
        name: (p + 0.1 * torch.randn_like(p)).detach().requires_grad_()
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    assert_same(network, lean, parameters=others)
    assert_same(network, lean)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("padding", [(2, 1), "same", "valid"])
def test_padding_of_frozen_convolutions(mode, padding):
    network = own(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, (4, 3), padding=padding, padding_mode=mode), nn.ReLU())
    lean = lean_copy(network)
    assert type(lean[1]) is FrozenConv2d
    assert_same(network, lean)
    assert_same(network, lean, IMAGES[0])  # one image without a batch


def test_padding_modes_of_standardized_convolutions():
    from tinytl.networks.norms import standardize_weights

    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect", bias=False))
    standardize_weights(network)
    assert network[0].padding_mode == "reflect"
    network = own(network[0], nn.GroupNorm(2, 4))
    assert_same(network, lean_copy(network))
    network[0].weight.requires_grad = True
    assert_same(network, lean_copy(network))


class Rectified(nn.BatchNorm2d):
    """A norm with a forward pass of its own."""

    def forward(self, input):
        return super().forward(input).relu()


class Gated(nn.GroupNorm):
    """Likewise."""

    def forward(self, input):
        return F.silu(super().forward(input))


def test_norms_with_a_forward_pass_of_their_own():
    network = own(nn.Conv2d(3, 8, 3), Rectified(8), nn.Conv2d(8, 8, 3), Gated(2, 8))
    assert_same(network, lean_copy(network))


def test_norms_of_other_dimensions():
    network = own(
        nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    lean = lean_copy(network)
    assert sum(isinstance(m, StoredBatchNorm | LeanGroupNorm) for m in lean.modules()) == 4
    assert_same(network, lean)
    assert_same(network, lean, IMAGES[:0])
    with pytest.raises(ValueError, match="dimensions"):
        lean[2](IMAGES)


@pytest.mark.parametrize("model", ["test_vit", "efficientformerv2_s0", "levit_128s", "repvit_m0_9"])
def test_other_architectures(model):
    """Transformers' blocks, several classifiers, BatchNorm1d."""
    network = frozen(model)
    size = network.pretrained_cfg["input_size"][-1]
    images = F.interpolate(IMAGES[:2], (size, size), mode="bilinear")
    assert_same(network, lean_copy(network), images)


def test_the_program_refuses_several_classifiers():
    with pytest.raises(UserError, match=r"has 2 classifiers"):
        build_network(NetworkSpec("levit_128s", "native", 5))


@pytest.mark.parametrize("plan", [PLAN, EnginePlan(recompute_above_px=None)])
@pytest.mark.parametrize("model", ["proxylessnas_w03", "mobilenetv3_small_100", "resnet18"])
def test_drop_path(model, plan):
    """Whole residual branches drop, the same ones in slices, in recomputed blocks, and in stock PyTorch."""
    network = frozen(model, drop_path_rate=0.5)
    lean = lean_copy(network, plan)
    if model == "proxylessnas_w03":
        assert len(lean_report(lean).native) == 20
    assert_same(network, lean)
    (first, out), (second, out_again) = gradients(lean), gradients(lean)
    assert torch.equal(out, out_again) and all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(lean.eval()(IMAGES), lean(IMAGES))


@pytest.mark.parametrize("model", ["proxylessnas_w03", "mobilenetv3_small_100", "resnet18"])
def test_empty_batches(model):
    network = frozen(model)
    assert_same(network, lean_copy(network), IMAGES[:0])


def test_empty_batches_with_lite_residuals():
    network = tinytl_network()
    assert_same(network, lean_copy(network), IMAGES[:0])


@pytest.mark.parametrize("model", ["proxylessnas_w03", "resnet18", "test_vit"])
def test_an_input_of_another_type_is_refused(model):
    network = frozen(model).float()
    lean = lean_copy(network)
    images = F.interpolate(IMAGES, network.pretrained_cfg["input_size"][1:])
    with pytest.raises(RuntimeError):
        network(images)
    with pytest.raises(UserError, match="input is float64, but the weights are float32"):
        lean(images)


def test_the_order_of_calls():
    network = tinytl_network()
    with pytest.raises(UserError, match="norm=bn-frozen: unknown"):
        set_train_mode(network, "bn-frozen")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has not converted"):
        lean_report(network)
    make_lean(network, PLAN)
    with pytest.raises(UserError, match="lean already"):
        make_lean(network, PLAN)
    with pytest.raises(UserError, match="lean already"):
        freeze(network, "full")
    with pytest.raises(UserError, match="get_classifier"):
        freeze(nn.Sequential(nn.Linear(2, 2)), "last")


def test_stepping_in_the_backward_pass_refuses_to_accumulate():
    network = tinytl_network().float()
    optimizer = adam(
        (p for p in network.parameters() if p.requires_grad), 0.1, 0.0, EnginePlan(step_in_backward=True)
    )
    for _ in range(2):
        network(IMAGES.float()).sum().backward()
        optimizer.step()
    network(IMAGES.float()).sum().backward()
    with pytest.raises(UserError, match=r"second backward pass before optimizer\.step"):
        network(IMAGES.float()).sum().backward()


def test_the_plans_settings_that_are_for_the_loop_are_said():
    plan = EnginePlan(micro_batch=2, optimizer_bits=8, step_in_backward=True)
    report = lean_report(make_lean(tinytl_network(), plan))
    assert report.for_your_loop == ("micro_batch=2", "optimizer_bits=8", "step_in_backward=True")
    assert "left to your optimizer and loop: micro_batch=2" in str(report)
    assert "left to" not in str(lean_report(make_lean(tinytl_network(), PLAN)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("name", ["gn", "bn_frozen", "bn", "mobilenetv3"])
@pytest.mark.parametrize("compile", ["auto", "off"])
def test_copies(copied, name, compile):
    """They compute the same, by parameters of their own under the same names."""
    network = frozen("mobilenetv3_small_100") if name == "mobilenetv3" else tinytl_network(name)
    lean = lean_copy(network, EnginePlan(slice_kb=30.0, compile=compile))
    other = copied(lean)
    assert str(other) == str(lean)
    assert list(other.state_dict()) == list(lean.state_dict())
    assert not {id(p) for p in other.parameters()} & {id(p) for p in lean.parameters()}
    assert_same(network, other)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_same(network, lean)


@pytest.mark.parametrize("name", ["gn", "bn_frozen", "mobilenetv3"])
def test_nothing_is_patched(name):
    """No module hides another's forward pass, and `print` names the layers that run."""
    network = frozen("mobilenetv3_small_100") if name == "mobilenetv3" else tinytl_network(name)
    lean = lean_copy(network)
    assert not any("forward" in vars(module) for module in lean.modules())
    text = str(lean)
    assert (
        "Conv2d(" not in text.replace("FrozenConv2d(", "").replace("StandardizedConv2d(", "")
        or name == "bn_frozen"
    )
    for layer, count in lean_report(lean).replaced.items():
        assert text.count(f"{layer}(") >= count, layer
    assert sum(isinstance(m, SlicedBottleneck) for m in lean.modules()) == len(lean_report(lean).sliced)


def test_trainable_state_fits_either_engine():
    network = tinytl_network("bn_frozen")
    state = {name: tensor for name, tensor in network.state_dict().items() if "conv" not in name}
    lean = make_lean(tinytl_network("bn_frozen"), PLAN)
    missing = set(state) - set(lean.state_dict())
    assert not missing
    assert not lean.load_state_dict(state, strict=False).unexpected_keys


def test_a_module_that_is_used_twice():
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    network = own(nn.Conv2d(3, 4, 1), conv, norm, nn.Sequential(conv, norm, nn.ReLU()))
    lean = lean_copy(network)
    assert lean[1] is lean[3][0] and type(lean[1]) is FrozenConv2d
    for conv in (network[1], lean[1]):  # whose parameters functional_call cannot swap
        conv.bias.requires_grad = False
    images = IMAGES.clone().requires_grad_()
    (expected, found) = (torch.autograd.grad(n(images).square().sum(), images)[0] for n in (network, lean))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_recomputation_only_where_it_keeps_less():
    """ReLU with stored statistics keeps a bit per element, and a block's input takes 32 of them."""
    for model in ("repvgg_a0", "resnet18"):
        report = lean_report(make_lean(frozen(model), EnginePlan()))
        assert not report.recomputed and len(report.kept_as_they_were) >= 8
        assert f"{len(report.kept_as_they_were)} blocks keep less as they are" in str(report)
    assert len(lean_report(make_lean(frozen("resnet18", "full"), EnginePlan())).recomputed) == 8
    assert len(lean_report(make_lean(tinytl_network(), EnginePlan(compile="off"))).recomputed) == 19
    assert not lean_report(make_lean(tinytl_network(), EnginePlan(recompute_above_px=None))).recomputed


def test_the_report_names_what_it_cannot_help(caplog):
    caplog.set_level("INFO", "tinytl")
    network = make_lean(frozen("convnext_atto"), EnginePlan(recompute_above_px=None))
    report = lean_report(network)
    assert report.input_size == (3, 224, 224)
    assert {"GELU", "LayerNorm2d"} <= report.helpless().keys()
    assert str(report) in caplog.text and "not helped: GELU" in str(report)
    with pytest.raises(AttributeError):
        report.sliced = ()  # type: ignore[misc]


@pytest.mark.parametrize("name", ["gn", "bn_frozen", "mobilenetv3_small_100", "resnet18"])
def test_gradients_under_autocast(name):
    """They are as close to those in float64 as stock PyTorch's under autocast."""
    network = tinytl_network(name) if name in ("gn", "bn_frozen") else frozen(name)
    images = IMAGES.float()
    exact, _ = gradients(network)
    half = copy.deepcopy(network).float()
    lean = lean_copy(half)
    with torch.autocast("cpu", torch.bfloat16):
        stock_half, out = gradients(half, images)
        lean_half, lean_out = gradients(lean, images)
    assert lean_out.dtype == out.dtype == torch.bfloat16

    def error(found):
        return torch.stack([(found[name] - g).norm() for name, g in exact.items()]).norm()

    assert error(lean_half) <= 2 * error(stock_half)

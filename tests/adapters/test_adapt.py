"""Five lines in one's own code: gradients are stock PyTorch's, memory is as predicted, misuse is refused."""

import copy
from typing import Any

import pytest
import tiny_network  # noqa: F401  (registers tinytl_tiny)
import torch
import torch.nn.functional as F
from own_networks import ResNet, sequential
from torch import nn

import tinytl
from tinytl.engine import make_lean
from tinytl.memory.meter import LiveMemory
from tinytl.methods import freeze
from tinytl.networks.quantize import quantize_frozen
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

# isort: split
import timm

SIZE = (3, 3, 32, 32)
RESNET = {"classifier": "fc", "blocks": ResNet.BLOCKS}
SEQUENTIAL = {"classifier": "7", "blocks": ["3", "4"]}


def moved(network: Any) -> Any:
    """The network in float64, with its norms away from where they begin."""
    torch.manual_seed(0)
    network = network.double()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            tensor.add_(0.2 * (torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor)))
    return network


def adapted_twice(network, **settings) -> tuple[Any, Any]:
    """The network as stock PyTorch computes it and as the lean engine does, with the same trained values."""
    both = []
    for lean in (False, True):
        torch.manual_seed(1)
        both.append(tinytl.adapt(copy.deepcopy(network), tinytl.Config(**settings, lean=lean)))
    stock, lean = both
    trained = {name: p for name, p in lean.named_parameters() if p.requires_grad}
    for name, parameter in stock.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
            trained.pop(name).data.copy_(parameter.data)
    assert not trained
    return stock, lean


def measured_mb(network, optimizer, dtype=torch.float64):
    """The peak of the second training step."""
    images, labels = torch.randn(*SIZE, dtype=dtype), torch.zeros(SIZE[0], dtype=torch.long)
    reports = []
    for _ in range(2):
        with LiveMemory(network, optimizer, (images, labels)) as live:
            loss = F.cross_entropy(network(images), labels)
            live.end_of_forward(loss)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        reports.append(live.report())
    return reports[1].peak_mb


def worst_gradient(stock, lean):
    """The largest error of a gradient tensor, relative to its norm or to a tiny share of the largest one."""
    images = torch.randn(*SIZE, dtype=torch.float64)
    weights = torch.linspace(-1, 1, 5 * SIZE[0], dtype=torch.float64).view(SIZE[0], 5)
    outputs = []
    for network in (stock, lean):
        out = network(images)
        (out * weights).sum().backward()
        outputs.append(out.detach())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    expected, found = (
        {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        for network in (stock, lean)
    )
    floor = 1e-4 * max(gradient.norm() for gradient in expected.values())
    errors = (
        (found[name] - gradient).norm() / max(gradient.norm(), floor) for name, gradient in expected.items()
    )
    return float(max(errors))


def tiny(classes=5) -> Any:
    torch.manual_seed(0)
    return timm.create_model("tinytl_tiny", num_classes=classes)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: timm.create_model("mobilenetv2_100", num_classes=5), {}),
        (lambda: timm.create_model("resnet18", num_classes=5), {}),
        (lambda: timm.create_model("efficientnet_lite0", num_classes=5), {"method": "bias"}),
        (lambda: timm.create_model("mobilenetv3_small_100", num_classes=5), {"trained_blocks": 4}),
        (lambda: ResNet(5), RESNET),
        (lambda: ResNet(5), {**RESNET, "trained_blocks": 1, "norm": "batch"}),
        (lambda: sequential(5), SEQUENTIAL),
        (lambda: sequential(5), {"classifier": "7", "method": "norm_last", "quantize": "off"}),
    ],
    ids=[
        "mobilenetv2",
        "resnet18",
        "lite0",
        "mobilenetv3",
        "ResNet",
        "its last block",
        "sequential",
        "norms",
    ],
)
def test_gradients_and_memory(make, settings):
    stock, lean = adapted_twice(moved(make()), **settings)
    assert worst_gradient(stock, lean) < 1e-9
    for network in (stock, lean):
        network.zero_grad()
    summary = tinytl.summary(lean, SIZE)
    lean_mb = measured_mb(lean, tinytl.adam(lean, 1e-3))
    stock_mb = measured_mb(stock, torch.optim.Adam(p for p in stock.parameters() if p.requires_grad))
    assert summary.peak_mb == pytest.approx(lean_mb, rel=0.01)
    assert summary.stock_mb == pytest.approx(stock_mb, rel=0.02)
    assert lean_mb < 0.9 * stock_mb


def test_summary_says_what_trains():
    network = tinytl.adapt(tiny(), tinytl.Config(method="bias", trained_blocks=1))
    expected = {
        name: p.numel() for name, p in network.named_parameters()
        if p.requires_grad and (name.endswith("bias") or name.startswith("classifier."))
    }  # fmt: skip
    summary = tinytl.summary(network)
    assert sum(summary.trained.values()) == sum(expected.values())
    assert summary.total == sum(p.numel() for p in tiny().parameters())
    text = str(summary)
    assert f"trains {sum(expected.values()):,} of {summary.total:,}" in text and "default (active)" in text
    assert "bottlenecks native" in text and "MB" not in text


@pytest.mark.parametrize("lean", [True, False])
def test_modes_are_safe(lean):
    """Whoever calls train() and eval(): stored statistics stay, and outputs are the same."""
    network = tinytl.adapt(moved(tiny()), tinytl.Config(method="bias", lean=lean))
    images = torch.randn(*SIZE, dtype=torch.float64)
    before, out = (
        {name: b.clone() for name, b in network.named_buffers() if "running" in name},
        network(images),
    )
    network.eval()
    network.train()
    assert torch.equal(network(images), out)
    assert all(torch.equal(b, before[name]) for name, b in network.named_buffers() if name in before)


def test_lite_residuals_take_their_statistics_from_images(caplog):
    images = torch.rand(16, 3, 64, 64) + 2
    network = tinytl.adapt(tiny(), tinytl.Config(), images=images)
    mean = next(b for name, b in network.named_buffers() if name.endswith("lite_residual.bn1.running_mean"))
    assert mean.any() and "mean 0 and variance 1" not in caplog.text
    tinytl.adapt(tiny(), tinytl.Config())
    assert "mean 0 and variance 1" in caplog.text


def test_group_norm_with_weight_standardisation():
    network = build_network(NetworkSpec("proxylessnas_w03", "gn", 5, dropout=0.0))
    stock, lean = adapted_twice(moved(network), norm="group")
    assert sum("lite_residual" in name for name, _ in lean.named_parameters()) > 0
    images = torch.randn(*SIZE, dtype=torch.float64)
    torch.testing.assert_close(lean(images), stock(images), rtol=1e-9, atol=1e-9)


def hooked(network):
    network.bn2.register_forward_hook(lambda *_: None)
    return network


def with_optimizer(network):
    network.optimizer_of_the_user = torch.optim.SGD(network.parameters(), 0.1)
    return network


def adapted(**settings) -> Any:
    return tinytl.adapt(tiny(), tinytl.Config(**{"method": "bias", **settings}))


def half_way(network):
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    return network


SPENDING = {"plan": tinytl.EnginePlan(step_in_backward=True)}


def spent(and_then):
    """A network whose gradients were stepped on in the backward pass, and what is done with them then."""
    network = adapted(**SPENDING)
    optimizer = tinytl.adam(network, 0.1)
    assert optimizer.param_groups
    half_way(network)
    return and_then(network)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: tinytl.adapt(adapted()), "is adapted already"),
        (lambda: tinytl.adapt(nn.Sequential(adapted())), "0 is adapted or lean already"),
        (lambda: tinytl.adapt(with_optimizer(tiny())), "SGD holds parameters .* after tinytl.adapt"),
        (lambda: tinytl.adapt(make_lean(tiny(), tinytl.EnginePlan())), "adapted or lean already"),
        (lambda: tinytl.adapt(hooked(tiny())), "bn2 has hooks"),
        (lambda: freeze(adapted(), "full"), "lean already"),
        (lambda: quantize_frozen(adapted(), "int8"), "lean already"),
        (lambda: make_lean(adapted(), tinytl.EnginePlan()), "lean already"),
        (lambda: tinytl.summary(tiny()), "not adapted; call tinytl.adapt"),
        (lambda: tinytl.save(tiny(), "nowhere"), "not adapted"),
        (lambda: tinytl.switch(tiny(), "default"), "not adapted"),
        (lambda: tinytl.unload(tiny()), "not adapted"),
        (lambda: tinytl.adam(tiny(), 0.1), "not adapted"),
        (lambda: tinytl.save(nn.DataParallel(adapted()), "nowhere"), r"give its \.module"),
        (lambda: tinytl.switch(adapted(), "cars"), "no adapter is named cars; there are default"),
        (lambda: spent(lambda n: nn.utils.clip_grad_norm_(n.parameters(), 1.0)), "none is left"),
        (lambda: spent(lambda n: n.classifier.weight.grad.norm()), "none is left"),
        (lambda: spent(half_way), "second backward pass"),
        (lambda: tinytl.Config(norm="bn-frozen"), "norm=bn-frozen: unknown; one of frozen, batch"),  # type: ignore[arg-type]
        (lambda: tinytl.Config(method="lora"), "method=lora: unknown"),
        (lambda: tinytl.Config(quantize="int4"), "quantize=int4: unknown"),  # type: ignore[arg-type]
        (lambda: tinytl.Config(blocks="layer1"), "a list of names"),
        (lambda: tinytl.Config(trained_blocks=-1), "trained_blocks=-1"),
        (lambda: tinytl.EnginePlan(compile="yes"), "engine.compile=yes"),  # type: ignore[arg-type]
        (lambda: tinytl.EnginePlan(optimizer_bits=16), "engine.optimizer_bits=16"),  # type: ignore[arg-type]
        (lambda: tinytl.EnginePlan(micro_batch=0), "engine.micro_batch=0"),
        (lambda: tinytl.LiteResidualConfig(kernel_size=4), "lite_residual.kernel_size=4"),
        (lambda: adapted(trained_blocks=9), "blocks=9: the network has 4"),
        (lambda: adapted(norm="group"), "norm=group: EfficientNet has BatchNorm"),
        (lambda: adapted(lite_residual=tinytl.LiteResidualConfig()), "method=bias does not train lite"),
        (lambda: adapted(classifier="head"), "classifier=head: EfficientNet has no module of that name"),
        (lambda: adapted(classifier=nn.Linear(2, 2)), "the module given is not in EfficientNet"),
        (lambda: tinytl.adapt(ResNet(5)), "no get_classifier.*for example classifier='fc'"),
        (lambda: tinytl.adapt(ResNet(5), tinytl.Config(classifier="fc")), "no blocks of timm.*blocks="),
        (lambda: tinytl.adapt(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), tinytl.Config(classifier="1")),
         "norm=frozen: Sequential has no BatchNorm"),
        (lambda: tinytl.adapt(ResNet(5), tinytl.Config(classifier="fc", blocks=["fc"])), "4-D map"),
        (lambda: tinytl.adapt(ResNet(5), tinytl.Config(classifier="fc", blocks=["layer1", "layer1.0"])),
         "inside of the block layer1"),
        (lambda: tinytl.adapt(timm.create_model("tinytl_tiny", num_classes=0)), "has no classifier"),
        (lambda: tinytl.summary(adapted(), (2, 4, 32, 32)), "the network takes no such images"),
        (lambda: tinytl.summary(adapted(), (3, 32, 32)), "batch, channels, height and width"),
    ],
)  # fmt: skip
def test_wrong_orders_and_wrong_settings_are_refused(act, message):
    with pytest.raises(tinytl.UserError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_an_optimizer_of_ones_own_sees_what_trains():
    """Over all parameters or over those that train: the same steps, and no frozen weight in float."""
    after = []
    for every in (True, False):
        network = adapted()
        optimizer = torch.optim.AdamW(p for p in network.parameters() if every or p.requires_grad)
        network.train()
        network(torch.ones(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        after.append({name: p.clone() for name, p in network.named_parameters() if p.requires_grad})
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_the_gpu():
    stock, lean = adapted_twice(moved(tiny()).cuda())
    images = torch.randn(*SIZE, dtype=torch.float64).cuda()
    torch.testing.assert_close(lean(images), stock(images), rtol=1e-9, atol=1e-9)
    assert lean(images).is_cuda and tinytl.summary(lean, SIZE).peak_mb

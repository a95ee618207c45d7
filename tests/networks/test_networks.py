"""Test backbones by name, norms, lite residual modules and 8-bit weights."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinytl.errors import UserError
from tinytl.methods import freeze
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidual, LiteResidualConfig
from tinytl.networks.norms import WeightStandardizedConv2d, standardize
from tinytl.networks.quantize import quantize_frozen, quantize_int8, quantize_kmeans
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.count import count_bare
from tinytl.weights.build import build_network

LITE = LiteResidualConfig()
SPINE = [
    *("proxylessnas_mobile", "proxylessnas_cpu", "proxylessnas_gpu", "proxylessnas_w03"),
    *("mobilenetv2_100", "mobilenetv2_140", "mnasnet_100", "efficientnet_lite0", "resnet50", "inception_v3"),
]


@pytest.mark.parametrize("lite", [None, LITE])
@pytest.mark.parametrize(
    "model", ["mixnet_s", "rexnet_100", "mobilenetv3_small_100", "vgg11_bn", "hrnet_w18_small"]
)
def test_any_timm_cnn_works_or_says_why_not(model, lite):
    """Odd blocks, odd channel counts, heads that are not linear: counted, or refused in one line."""
    try:
        assert count_bare(NetworkSpec(model, "gn", 5, lite), "full", 96).total_bytes(8) > 0
    except UserError as error:
        assert lite and "has no inverted bottlenecks" in str(error)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # Counted by their authors, with 1,000 classes.
        ("proxylessnas_mobile", 4080512),
        ("proxylessnas_cpu", 4361648),
        ("proxylessnas_gpu", 7119848),
        ("mobilenetv2_100", 3504872),
        ("resnet50", 25557032),
    ],
)
def test_parameter_counts(model, parameters):
    network = build_on_meta(NetworkSpec(model, "bn", 1000))
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("model", [*SPINE, "tf_efficientnet_lite0", "regnety_002", "densenet121", "resnet18"])
def test_group_norm_replaces_every_batch_norm(model):
    network = build_on_meta(NetworkSpec(model, "gn", 5))
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for norm in norms:
        size = norm.num_channels // norm.num_groups
        assert size == max(d for d in range(1, 9) if norm.num_channels % d == 0)
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is None and conv.weight[0].numel() > 1:
            assert isinstance(conv, WeightStandardizedConv2d)


def test_group_norm_keeps_the_backbones_epsilon():
    epsilons = {
        name: {
            m.eps for m in build_on_meta(NetworkSpec(name, "gn", 5)).modules() if isinstance(m, nn.GroupNorm)
        }
        for name in ("proxylessnas_mobile", "mobilenetv2_100", "inception_v3")
    }
    assert epsilons == {"proxylessnas_mobile": {1e-3}, "mobilenetv2_100": {1e-5}, "inception_v3": {1e-3}}


def test_same_padding_survives_weight_standardisation():
    """TensorFlow's padding depends on the input's size; standardised weights must not change that."""
    network = build_network(NetworkSpec("tf_efficientnet_lite0", "gn", 5)).eval()
    stem = network.conv_stem
    images = torch.randn(1, 3, 65, 65)
    padded = F.pad(images, (1, 1, 1, 1))  # 65 px, kernel 3, stride 2: one on each side
    expected = F.conv2d(padded, standardize(stem.weight), stride=2)
    torch.testing.assert_close(stem(images), expected)


def test_weight_standardisation_against_numpy():
    weight = torch.randn(6, 4, 3, 3)
    w = weight.numpy().reshape(6, -1).astype(numpy.float64)
    expected = (w - w.mean(1, keepdims=True)) / (w.std(1, ddof=1, keepdims=True) + 1e-5)
    numpy.testing.assert_allclose(standardize(weight).numpy().reshape(6, -1), expected, rtol=1e-4, atol=1e-6)


def test_backbones_without_batch_norm():
    with pytest.raises(UserError, match=r"convnext_atto has no BatchNorm; norm=native"):
        build_on_meta(NetworkSpec("convnext_atto", "gn", 5))
    assert build_network(NetworkSpec("convnext_atto", "native", 5))(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_unknown_models_name_the_nearest():
    with pytest.raises(UserError, match=r"model=mobilnetv2_100.*mobilenetv2_100"):
        build_on_meta(NetworkSpec("mobilnetv2_100", "bn", 5))


def test_lite_residual_kernels_shrink_as_published(golden):
    network = build_on_meta(NetworkSpec("proxylessnas_mobile", "gn", 1000, LITE))
    kernels = [m.conv1.kernel_size[0] for m in network.modules() if isinstance(m, LiteResidual)]
    assert kernels == [5] * 15 + [3] * 4


@pytest.mark.parametrize("model", ["proxylessnas_w03", "resnet18", "resnet50"])
def test_lite_residual_adds_nothing_at_first(model):
    """Its last scale starts at zero: the network computes what the bare one does."""
    images = torch.randn(2, 3, 64, 64)
    bare = build_network(NetworkSpec(model, "bn_frozen", 5)).eval()
    lite = build_network(NetworkSpec(model, "bn_frozen", 5, LITE)).eval()
    names = {key.replace("main_branch.", "").replace("downsample.shortcut.", "downsample."): key
             for key in lite.state_dict()}  # fmt: skip
    lite.load_state_dict({names[key]: value for key, value in bare.state_dict().items()}, strict=False)
    torch.testing.assert_close(lite(images), bare(images))


def test_lite_residual_on_a_resnet_joins_the_sum():
    """relu(main + shortcut + lite), computed by hand."""
    network = build_network(NetworkSpec("resnet18", "bn_frozen", 5, LITE)).eval()
    block = network.layer2[0]
    nn.init.normal_(block.downsample.lite_residual.final_bn.weight)
    x = torch.randn(2, 64, 16, 16)
    main = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    expected = torch.relu(main + block.downsample.shortcut(x) + block.downsample.lite_residual(x, (8, 8)))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("resolution", [32, 47, 224])
@pytest.mark.parametrize(
    "config",
    [LITE, LiteResidualConfig(3, 1, 2.0, 4, "nearest"), LiteResidualConfig(7, 4, 0.5, 1)],
)
def test_lite_residual_options_at_any_resolution(config, resolution):
    network = build_on_meta(NetworkSpec("proxylessnas_w03", "gn", 5, config))
    assert network(torch.empty(2, 3, resolution, resolution, device="meta")).shape == (2, 5)


def test_lite_residual_groups_must_divide():
    with pytest.raises(UserError, match=r"lite_residual.groups=3 does not divide"):
        build_on_meta(NetworkSpec("proxylessnas_w03", "gn", 5, LiteResidualConfig(groups=3)))


def test_int8_error_is_at_most_half_a_step_per_channel():
    weight = torch.randn(16, 8, 3, 3) * torch.logspace(-3, 2, 16)[:, None, None, None]
    quantized = quantize_int8(weight)
    assert quantized.codes.dtype == torch.int8
    step = weight.abs().amax((1, 2, 3)) / 127
    error = (quantized.dequantize() - weight).abs().amax((1, 2, 3))
    assert (error <= step / 2 * 1.001).all()


def test_int8_of_zeros():
    assert torch.equal(quantize_int8(torch.zeros(2, 3)).dequantize(), torch.zeros(2, 3))


def test_kmeans_takes_256_values_and_beats_even_spacing():
    weight = torch.randn(64, 32, 3, 3)
    quantized = quantize_kmeans(weight)
    assert quantized.codes.dtype == torch.uint8
    assert quantized.dequantize().unique().numel() <= 256
    even = torch.linspace(weight.min().item(), weight.max().item(), 256)
    nearest = even[(weight.flatten()[:, None] - even).abs().argmin(1)]
    error = (quantized.dequantize() - weight).square().mean()
    assert error < (nearest - weight.flatten()).square().mean()


def test_kmeans_of_fewer_values_is_exact():
    weight = torch.randint(-20, 20, (64, 8, 1, 1)).float()
    assert torch.equal(quantize_kmeans(weight).dequantize(), weight)


@pytest.mark.parametrize("name", ["int8", "kmeans"])
def test_only_frozen_weights_are_quantised(name):
    network = build_network(NetworkSpec("proxylessnas_w03", "gn", 5, LITE))
    freeze(network, "tinytl")
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    quantize_frozen(network, name)
    for key, p in network.named_parameters():
        same = torch.equal(p, before[key])
        if p.requires_grad or p.ndim == 1:
            assert same, key
        else:  # a tensor of at most 256 elements needs no rounding to 256 values
            assert not same or p.numel() <= 256, key

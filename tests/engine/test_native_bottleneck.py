"""The native bottleneck against the layers it replaces, in float64."""

import copy
import os
import pickle
from typing import Any

import pytest
import torch
from frozen_layers import SMOOTH, Allocations, frozen_conv, random_norm, relative_errors, results
from timm.layers import Conv2dSame
from torch import Tensor, nn

from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.norms import Activation
from tinytl.engine.native.packing import PackedWeight, Packing
from tinytl.errors import UserError
from tinytl.networks.norms import WeightStandardizedConv2d


class Stock:
    """A bottleneck of ordinary layers, and the native one of the same parts."""

    def __init__(
        self, inputs: int = 6, width: int = 24, outputs: int = 10, kernel: int = 3, stride: int = 1,
        group: int = 8, last_group: int = 5, act: type[nn.Module] = nn.ReLU6, expand: str | None = "1x1",
        stem: tuple[int, int] = (3, 2), padding: int | None = None, expand_padding: int = 0,
        conv: Any = nn.Conv2d, quantize: str = "int8", skip: bool = False,
        dtype: torch.dtype = torch.float64, **options: Any,
    ) -> None:  # fmt: skip
        def layer(i: int, o: int, k: int, s: int = 1, groups: int = 1, cls: Any = conv) -> nn.Conv2d:
            made = cls(i, o, k, s, k // 2, groups=groups, bias=False)
            return frozen_conv(made, quantize)

        first = None
        if expand == "1x1":
            first = layer(inputs, width, 1, cls=nn.Conv2d if conv is Conv2dSame else conv)
            first.padding = (expand_padding, expand_padding)
        elif expand == "stem":
            first = layer(inputs, width, *stem)
        else:
            width = inputs
        depthwise = layer(width, width, kernel, stride, width)
        if padding is not None:
            depthwise.padding = (padding, padding)
        project = layer(width, outputs, 1, cls=nn.Conv2d if conv is Conv2dSame else conv)
        groups = [group] * (1 if first is None else 2)
        self.norms = [*(random_norm(width, g) for g in groups), random_norm(outputs, last_group)]
        self.convs = [c for c in (first, depthwise, project) if c is not None]
        for module in (*self.norms, *self.convs):
            module.to(dtype)
        self.act, self.skip = act, skip
        acts = [Activation.of(act()) for _ in groups]
        assert NativeBottleneck.supports(first, depthwise, project, self.norms, acts)
        norms = {f"bn{i}": norm for i, norm in enumerate(self.norms, 1)}
        self.native = NativeBottleneck(first, depthwise, project, norms, acts, skip, **options)  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        """The layers one after another."""
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i < len(self.convs) - 1:
                out = SMOOTH.get(self.act, self.act())(out)
        return out + x if self.skip else out


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride 2, odd sides": {"stride": 2},
    "stored statistics": {"group": 0, "last_group": 0},
    "third pass": {"keep_projection": False},
    "third pass, stored": {"group": 0, "last_group": 0, "keep_projection": False},
    "groups of 5 leave a lane free": {"group": 5, "width": 35, "last_group": 1},
    "groups wider than a vector": {"group": 20, "width": 40, "last_group": 10},
    "one group": {"group": 72, "width": 72},
    "shortcut": {"outputs": 6, "last_group": 3, "skip": True},
    "shortcut, stored": {"outputs": 6, "group": 0, "last_group": 0, "skip": True},
    "no expansion": {"expand": None, "inputs": 24},
    "no expansion, stored, stride 2": {"expand": None, "inputs": 20, "group": 0, "stride": 2},
    "stem": {"expand": "stem", "inputs": 3},
    "stem, stored, 5x5, stride 1": {"expand": "stem", "inputs": 2, "stem": (5, 1), "group": 0},
    "expansion with stride": {"expand": "stem", "stem": (1, 2)},
    "stem of an image without gradient": {"expand": "stem", "inputs": 3, "needs_x": False},
    "TensorFlow's padding": {"conv": Conv2dSame, "kernel": 5, "stride": 2},
    "TensorFlow's padding, stem": {"conv": Conv2dSame, "expand": "stem", "inputs": 3},
    "no padding": {"padding": 0, "kernel": 5, "stride": 2},
    "more padding than the kernel": {"padding": 4},
    "padding before the expansion": {"expand_padding": 1},
    "weight standardisation": {
        "conv": WeightStandardizedConv2d,
        "act": nn.Hardsigmoid,
        "width": 25,
        "group": 5,
    },
    "k-means": {"quantize": "kmeans"},
    "floating point": {"quantize": "off"},
    "7x7": {"kernel": 7, "stride": 2, "outputs": 37, "last_group": 37},
    "11x11, larger than the map": {"kernel": 11, "size": (4, 3)},
    "1x1": {"kernel": 1},
    "ReLU, one step a slice": {"act": nn.ReLU, "width": 80, "slice_bytes": 1.0},
    "several slices": {"width": 88, "slice_bytes": 2e4},
    "SiLU": {"act": nn.SiLU},
    "hard swish": {"act": nn.Hardswish},
    "no activation": {"act": nn.Identity},
    "more inputs than a vector": {"inputs": 37, "size": (14, 15)},
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_those_of_the_layers(name: str):
    torch.manual_seed(0)
    case = dict(CASES[name])
    size, needs_x = case.pop("size", (9, 11)), case.pop("needs_x", True)
    stock = Stock(**case)
    x = torch.randn(2, stock.convs[0].in_channels, *size, dtype=torch.float64)
    grad = torch.randn_like(stock(x))
    exact = results(stock, stock.norms, x, grad, needs_x)
    assert max(relative_errors(results(stock.native, stock.norms, x, grad, needs_x), exact)) < 1e-9

    for module in (*stock.norms, *stock.convs, stock.native):
        module.to(torch.float32)
    arguments = (stock.norms, x.float(), grad.float(), needs_x)
    own = relative_errors(results(stock.native, *arguments), exact)
    theirs = relative_errors(results(stock, *arguments), exact)
    assert max(own) < 4 * max(theirs) + 1e-6


@pytest.mark.parametrize("frozen", ["all", "scales"])
def test_frozen_scales_and_shifts_leave_the_other_gradients_as_they_are(frozen: str):
    torch.manual_seed(0)
    stock = Stock(group=0, last_group=0)
    for norm in stock.norms:
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad_(frozen == "scales")
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    grad = torch.randn_like(stock(x))
    expected = results(stock, stock.norms, x, grad)
    assert max(relative_errors(results(stock.native, stock.norms, x, grad), expected)) < 1e-9


def test_a_maps_sum_does_not_cancel_when_its_mean_is_large():
    torch.manual_seed(0)
    stock = Stock(group=0, last_group=5, dtype=torch.float32)
    with torch.no_grad():
        stock.norms[1].bias += 1000  # the projection's maps are then almost constant
    x = torch.randn(1, 6, 20, 20)
    found = stock.native(x)
    for module in (*stock.norms, *stock.convs):
        module.double()
    expected = stock(x.double())
    rounded = 1000 * torch.finfo(torch.float32).eps * stock.norms[2].weight.max().item()
    assert float((found - expected).detach().abs().max()) < 100 * rounded


@pytest.mark.parametrize("case", [{}, {"group": 0, "last_group": 0}, {"expand": None, "inputs": 24}])
def test_results_are_the_same_bits_for_any_number_of_threads_and_batch(case: dict[str, Any]):
    torch.manual_seed(0)
    stock = Stock(**case, dtype=torch.float32)
    x = torch.randn(5, stock.convs[0].in_channels, 9, 9)
    grad = torch.randn_like(stock(x))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(stock.native, stock.norms, x, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    alone = results(stock.native, stock.norms, x[2:3], grad[2:3])
    assert torch.equal(alone[0], found[0][0][2:3]) and torch.equal(alone[1], found[0][1][2:3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_computes_with_threads_of_its_own():
    stock = Stock(dtype=torch.float32)
    x = torch.randn(4, 6, 9, 9)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = stock.native(x)
            child = os.fork()
            if child == 0:
                os._exit(0 if stock.native(x).tolist() == expected.tolist() else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_an_empty_batch_gives_empty_maps_and_gradients_of_zero():
    stock = Stock()
    x = torch.randn(0, 6, 8, 8, dtype=torch.float64)
    out, grad_x, *grads = results(stock.native, stock.norms, x, torch.randn(0, 10, 8, 8, dtype=torch.float64))
    assert out.shape == (0, 10, 8, 8) and grad_x.shape == x.shape
    assert all(not g.any() for g in grads)


def test_meta_tensors_allocate_what_a_call_allocates():
    stock = Stock()
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    sizes: dict[str, list[int]] = {}
    for device in ("cpu", "meta"):
        native = copy.deepcopy(stock.native).to(device)
        made = sizes.setdefault(device, [])
        with Allocations(made):
            inputs = x.detach().to(device).requires_grad_()
            out = native(inputs)
            out.backward(torch.empty_like(out))
    assert sizes["cpu"] == sizes["meta"] and len(sizes["cpu"]) > 8


def test_a_copy_and_a_pickled_block_compute_the_same():
    torch.manual_seed(0)
    stock = Stock()
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    expected = stock.native(x)
    assert torch.equal(copy.deepcopy(stock.native)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(stock.native))(x), expected)


@pytest.mark.parametrize("quantize", ["int8", "kmeans", "off"])
def test_packed_weights_unpack_to_what_they_were(quantize: str):
    torch.manual_seed(0)
    packing = Packing.of(35, 5)
    rows = frozen_conv(nn.Conv2d(6, 35, 3, bias=False), quantize)
    columns = frozen_conv(nn.Conv2d(35, 10, 1, bias=False), quantize)
    for conv, packed in (
        (rows, PackedWeight(rows, rows=packing)),
        (columns, PackedWeight(columns, columns=packing)),
    ):
        torch.testing.assert_close(packed.used(), conv.weight)


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [
        (32, (8, 8), (32, 16, 16)),
        (35, (5, 5), (35, 16, 15)),
        (40, (20, 4), (40, 32, 20)),
        (96, (12, 8), (96, 32, 24)),
    ],
)
def test_a_group_never_straddles_a_unit(channels: int, groups: tuple[int, ...], expected: tuple[int, ...]):
    packing = Packing.of(channels, *groups)
    assert tuple(packing) == expected
    channel = packing.channel_of_lane()
    assert channel[channel >= 0].tolist() == list(range(channels))
    for group in groups:
        unit_of_channel = (channel >= 0).nonzero()[:, 0] // packing.unit_lanes
        assert all(len({*part.tolist()}) == 1 for part in unit_of_channel.split(group))


def test_what_it_cannot_compute_is_not_supported():
    norms = [random_norm(16, 8), random_norm(16, 8), random_norm(8, 8)]
    acts = [Activation.of(nn.ReLU()), Activation.of(nn.ReLU())]
    frozen = {
        "expand": frozen_conv(nn.Conv2d(8, 16, 1, bias=False), "off"),
        "depthwise": frozen_conv(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), "off"),
        "project": frozen_conv(nn.Conv2d(16, 8, 1, bias=False), "off"),
    }
    assert NativeBottleneck.supports(**frozen, norms=norms, acts=acts)
    others = {
        "expand": [
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(8, 16, 1, groups=2, bias=False),
            nn.Conv2d(8, 16, 2, bias=False),
        ],
        "depthwise": [
            nn.Conv2d(16, 16, 3, 1, 1, groups=8, bias=False),
            nn.Conv2d(16, 16, 3, 3, 1, groups=16, bias=False),
            nn.Conv2d(16, 16, 3, 1, 1, 2, groups=16, bias=False),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False, padding_mode="reflect"),
            nn.Conv2d(16, 16, 13, 1, 6, groups=16, bias=False),
            nn.Conv2d(16, 16, 3, 1, padding="same", groups=16, bias=False),
        ],
        "project": [nn.Conv2d(16, 8, 3, 1, 1, bias=False), nn.Conv2d(16, 8, 1, 2, bias=False)],
    }
    for name, convs in others.items():
        for conv in convs:
            assert not NativeBottleneck.supports(
                **{**frozen, name: frozen_conv(conv, "off")}, norms=norms, acts=acts
            )
    assert not NativeBottleneck.supports(
        **frozen, norms=[*norms[:2], nn.BatchNorm2d(8)], acts=acts
    )  # in training
    assert not NativeBottleneck.supports(**frozen, norms=norms, acts=[acts[0], Activation.of(nn.GELU())])


def test_inputs_that_do_not_fit_and_hooks_are_refused():
    stock = Stock()
    with pytest.raises(ValueError, match="6 channels"):
        stock.native(torch.randn(1, 5, 8, 8, dtype=torch.float64))
    stock.norms[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="hooks"):
        stock.native(torch.randn(1, 6, 8, 8, dtype=torch.float64))

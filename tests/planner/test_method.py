"""Test `blocks`, and how a memory budget chooses method, blocks and resolution."""

import csv
from dataclasses import replace
from statistics import mean

import pytest
import tiny_network  # noqa: F401  (timm knows it from here on)
import torch
from processes import ROOT
from test_engine_plan import assert_predicted

from tinytl.assembly import TrainingStep
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory.predict import predicted_bytes
from tinytl.methods import METHODS, freeze
from tinytl.networks.blocks import block_names
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.count import count_bare
from tinytl.planner import method as choice
from tinytl.planner.engine_plan import Planner
from tinytl.weights.build import build_network

LITE = LiteResidualConfig()
SMALL = TrainingStep(NetworkSpec("tinytl_tiny", "gn", 10), "last", 8, 96)
EIGHT_BITS = replace(SMALL, plan=EnginePlan(optimizer_bits=8))
PX = [96, 128]


@pytest.mark.parametrize("model", ["proxylessnas_w03", "mobilenetv2_100", "resnet18", "efficientnet_b0"])
def test_gradients_reach_the_last_blocks_alone(model):
    network = build_network(NetworkSpec(model, "gn", 5))
    freeze(network, "bias", blocks=3)
    images = torch.randn(2, 3, 64, 64)
    network(images).sum().backward()
    last = tuple(f"{name}." for name in block_names(network)[-3:])
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    inside = {name for name in reached if name.startswith(last)}
    assert len({name.split(".bn")[0] for name in inside}) >= 3
    first = min(i for i, (name, _) in enumerate(network.named_parameters()) if name.startswith(last))
    early = {name for name, _ in list(network.named_parameters())[:first]}
    assert reached and not reached & early


def test_more_blocks_than_there_are():
    network = build_on_meta(NetworkSpec("proxylessnas_w03", "gn", 5))
    with pytest.raises(UserError, match=r"blocks=21: the network has 20"):
        freeze(network, "full", blocks=21)
    freeze(network, "full", blocks=0)  # what lies behind the blocks
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"conv_head", "bn2", "classifier"}


def test_fewer_blocks_take_less_and_as_predicted():
    steps = [
        replace(SMALL, method="tinytl", spec=replace(SMALL.spec, lite_residual=LITE), blocks=b)
        for b in (1, 2, None)
    ]
    sizes = [predicted_bytes(step) for step in steps]
    assert sizes == sorted(sizes) and sizes[0] < 0.7 * sizes[-1]
    for what in steps[:2]:
        assert_predicted(what)
        assert_predicted(what, "stock")
    counts = [count_bare(s.spec, s.method, 96, s.blocks).total_bytes(8) for s in steps]
    assert counts == sorted(counts)


def test_expectations_are_the_papers():
    with (ROOT / "src/tinytl/paper/table2.csv").open() as file:
        rows = {(r.pop("method"), r.pop("resolution")): r for r in csv.DictReader(file)}
    row = rows["TinyTL-L+B", "224"]
    row.pop("train_memory_mb")
    assert choice.expected_top1("tinytl", 1.0, 224) == pytest.approx(mean(map(float, row.values())))
    last, full = (choice.expected_top1(m, 1.0, 224) for m in ("last", "full"))
    assert choice.expected_top1("full", 0.5, 224) == pytest.approx((last + full) / 2)
    # from 96 to 128 px Figure 3 has one curve, full on cars: 76.1 and 84.2
    assert choice.resolution_effect(128) - choice.resolution_effect(96) == pytest.approx(84.2 - 76.1)
    effects = [choice.resolution_effect(px) for px in range(96, 321, 32)]
    assert effects == sorted(effects) and choice.resolution_effect(224) == 0


@pytest.mark.parametrize(("image_px", "resolution", "as_good_as"), [(8, 96, 96), (32, 128, 112)])
def test_small_images_gain_nothing_from_more_pixels(image_px, resolution, as_good_as):
    """Everything fits: the first resolution from 3.5 times their size on, worth no more than those."""
    planner = Planner(EIGHT_BITS)
    found = choice.weigh(planner, 1e9, [96, 128, 160, 192], None, image_px).best
    assert (found.method, found.blocks, found.resolution) == ("full", None, resolution)
    assert found.expected == pytest.approx(choice.expected_top1("full", 1.0, as_good_as))


@pytest.mark.parametrize("budget_mb", [0.8, 1.2, 1.75])
def test_the_choice_is_the_best_of_all_that_fits(budget_mb):
    """By brute force over every method, share of blocks and resolution."""
    planner = Planner(EIGHT_BITS, may_step_in_backward=False)
    weighed = choice.weigh(planner, budget_mb * 1e6, PX)
    found = weighed.best
    count = len(block_names(build_on_meta(SMALL.spec)))
    best, larger = {}, []  # expectations of what fits, by method and blocks, and of what does not
    for method, info in METHODS.items():
        for share, kept in info.gain_kept.items():
            for px in PX:
                spec = replace(SMALL.spec, lite_residual=LITE if info.needs_lite_residual else None)
                blocks = None if share == 1 else round(share * count)
                step = replace(EIGHT_BITS, spec=spec, method=method, resolution=px, blocks=blocks)
                expected = choice.expected_top1(method, kept, px)
                least = replace(planner, step=step).smallest_bytes()
                if least <= budget_mb * 1e6:
                    best[method, blocks] = max(best.get((method, blocks), (0.0, 0)), (expected, least))
                else:
                    larger.append((expected, least))
    shown = [(candidate.expected, size_bytes) for candidate, size_bytes in weighed.fitting]
    assert shown == sorted(best.values(), reverse=True)[:5]
    better = min((pair for pair in larger if pair[0] > found.expected), default=None)
    next_better = weighed.too_large and (weighed.too_large[0].expected, weighed.too_large[1])
    assert (next_better and next_better[0]) == (better and better[0])
    step = choice.apply(EIGHT_BITS, found)
    assert predicted_bytes(replace(planner, step=step).choose(budget_mb * 1e6)) <= budget_mb * 1e6


def test_a_budget_too_small_for_any_method():
    with pytest.raises(UserError, match=r"memory_budget_mb=0.1: method=auto takes at least .*method=last"):
        choice.weigh(Planner(SMALL), 1e5, PX)


def test_what_a_network_cannot_take_is_not_chosen():
    inception = replace(EIGHT_BITS, spec=NetworkSpec("inception_v3", "gn", 10), batch_size=1)
    found = choice.weigh(Planner(inception), 60e6, [96]).best
    assert not METHODS[found.method].needs_lite_residual
    none = choice.weigh(Planner(EIGHT_BITS), 1.1e6, [96], None).best
    assert not METHODS[none.method].needs_lite_residual

"""Adapters as files, and several of them on one network."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import tiny_network  # noqa: F401  (registers tinytl_tiny)
import torch
from own_networks import ResNet, sequential
from safetensors.torch import load_file, save_file

import tinytl
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

# isort: split
import timm

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny(classes=3, seed=0) -> Any:
    torch.manual_seed(seed)
    network: Any = timm.create_model("tinytl_tiny", num_classes=4)
    network.reset_classifier(classes)  # so that the rest does not depend on their number
    return network


def trained(network, steps=2, **settings) -> Any:
    """The network, adapted and trained for some steps."""
    network = tinytl.adapt(network, tinytl.Config(**settings), images=IMAGES)
    train(network, steps)
    return network


def train(network, steps=2):
    optimizer = tinytl.adam(network, 0.05)
    network.train()
    for _ in range(steps):
        network(IMAGES).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(network):
    return network.eval()(IMAGES)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A folder with an adapter of three classes, and the logits that it gives."""
    network = trained(tiny())
    folder = tmp_path_factory.mktemp("adapters") / "flowers"
    tinytl.save(network, folder, class_names=["rose", "tulip", "iris"], metrics={"top1": 0.5})
    return folder, logits(network)


def test_the_folder_says_what_it_is(flowers):
    folder, _ = flowers
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    record = json.loads((folder / "adapter_config.json").read_text())
    assert record["spec"]["model"] == "tinytl_tiny" and record["spec"]["num_classes"] == 3
    assert (record["method"], record["spec"]["norm"], record["quantize"]) == ("tinytl", "bn_frozen", "int8")
    assert record["class_names"] == ["rose", "tulip", "iris"] and record["metrics"] == {"top1": 0.5}
    assert record["mean"] == [0.5, 0.5, 0.5] and record["resolution"] == 224
    assert record["version"] == tinytl.__version__ and len(record["frozen_sha256"]) == 64
    names = set(load_file(folder / "adapter_model.safetensors"))
    statistics = {name for name in names if "running" in name}
    assert statistics and all("lite_residual" in name for name in statistics)
    assert "classifier.weight" in names and not any("conv_dw" in name for name in names)


@pytest.mark.parametrize("lean", [True, False])
def test_load_adapts_a_fresh_network_whatever_its_classes(flowers, lean):
    folder, expected = flowers
    network = tinytl.load(tiny(classes=7), folder, name="flowers", lean=lean)
    torch.testing.assert_close(logits(network), expected, rtol=1e-4, atol=1e-4)
    assert (network.classifier.out_features, network.num_classes) == (3, 3)
    assert "flowers (active)" in str(tinytl.summary(network))


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: ResNet(3), {"classifier": "fc", "blocks": ResNet.BLOCKS, "trained_blocks": 2}),
        (lambda: sequential(3), {"classifier": "7", "blocks": ["3", "4"]}),
        (lambda: sequential(3), {"classifier": "7", "method": "full", "norm": "batch", "quantize": "off"}),
        (lambda: tiny(), {"method": "norm_last", "norm": "batch", "quantize": "kmeans"}),
        (lambda: build_network(NetworkSpec("proxylessnas_w03", "gn", 3, dropout=0.0)), {"norm": "group"}),
    ],
    ids=["ResNet", "sequential", "full", "kmeans", "group"],
)
def test_a_round_trip(make, settings, tmp_path):
    torch.manual_seed(0)
    fresh = make()
    network = trained(copy.deepcopy(fresh), **settings)
    tinytl.save(network, tmp_path / "adapter")
    again = tinytl.load(fresh, tmp_path / "adapter")
    assert torch.equal(logits(again), logits(network))


def test_adapters_share_one_backbone(flowers, tmp_path):
    """Each computes its own classes, and the frozen weights stay where they are."""
    folder, expected = flowers
    cars = trained(tiny(classes=5))
    tinytl.save(cars, tmp_path / "cars", class_names=list("abcde"))
    network = tinytl.load(tiny(), folder, name="flowers")
    frozen = {name: p.data_ptr() for name, p in network.named_parameters() if not p.requires_grad}
    assert tinytl.load(network, tmp_path / "cars", name="cars") is network
    for name, out in (("flowers", expected), ("cars", logits(cars)), ("flowers", expected)):
        tinytl.switch(network, name)
        assert torch.equal(logits(network), out)
    assert {name: p.data_ptr() for name, p in network.named_parameters() if not p.requires_grad} == frozen
    tinytl.switch(network, "cars")
    train(network)
    after = logits(network)
    tinytl.switch(network, "flowers")
    assert torch.equal(logits(network), expected) and not any(
        p.grad is not None for p in network.parameters()
    )
    tinytl.save(network, tmp_path / "again", name="cars")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["class_names"] == list(
        "abcde"
    )
    assert torch.equal(logits(tinytl.load(tiny(), tmp_path / "again")), after)


def test_statistics_that_training_changes_belong_to_the_adapter(tmp_path):
    network = tinytl.adapt(tiny(), tinytl.Config(method="bias", norm="batch"))
    tinytl.save(network, tmp_path / "before")
    first = network.bn1.running_mean.clone()
    train(network)
    trained_mean = network.bn1.running_mean.clone()
    tinytl.load(network, tmp_path / "before", name="before")
    assert torch.equal(network.bn1.running_mean, first) and not torch.equal(first, trained_mean)
    tinytl.switch(network, "default")
    assert torch.equal(network.bn1.running_mean, trained_mean)


def test_the_programs_build_the_network_of_an_adapter(tmp_path):
    """With `base`, or where timm has the weights; the other way round, a run's adapter is loaded."""
    spec = NetworkSpec("proxylessnas_w03", "bn_frozen", 3, LiteResidualConfig(), 0.0, "embedded")
    network = trained(build_network(spec))
    tinytl.save(network, tmp_path / "adapter", class_names=list("abc"), base="embedded")
    built = build_network(replace(spec, checkpoint=str(tmp_path / "adapter")))
    torch.testing.assert_close(logits(built), logits(network), rtol=1e-4, atol=1e-4)


def damaged(folder, target, change) -> Any:
    """A copy of an adapter whose tensors and record `change` has changed, in both files alike."""
    tensors = load_file(folder / "adapter_model.safetensors")
    record = json.loads((folder / "adapter_config.json").read_text())
    change(tensors, record)
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors", {"tinytl": json.dumps(record)})
    (target / "adapter_config.json").write_text(json.dumps(record))
    return target


SHIFT = "blocks.0.0.bn1.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: t.pop(SHIFT), f"does not fit the network: missing {SHIFT}"),
        (lambda t, r: t.update(head=t[SHIFT].clone()), "unexpected head"),
        (lambda t, r: t.update({SHIFT: torch.zeros(3)}), rf"mis-shaped {SHIFT} \(3,\) for \(8,\)"),
        (lambda t, r: t[SHIFT].fill_(torch.nan), f"{SHIFT} holds NaN"),
        (lambda t, r: r.update(class_names=["rose"]), "1 class names for a classifier of 3 classes"),
        (lambda t, r: r.update(class_names=["rose"] * 3), "3 classes are named rose"),
        (lambda t, r: r.update(class_names=None) or r["spec"].update(num_classes=4), "mis-shaped classifier"),
        (lambda t, r: r.update(method="lora"), "method=lora is not known"),
        (lambda t, r: r.update(frozen_sha256="0" * 64), "trained on tinytl_tiny .*0000; this .*tinytl_tiny"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(flowers, tmp_path, change, message):
    folder = damaged(flowers[0], tmp_path / "other", change)
    fresh, loaded = tiny(), tinytl.load(tiny(), flowers[0], name="flowers")
    for network in (fresh, loaded):
        before, out = copy.deepcopy(network.state_dict()), logits(network)
        with pytest.raises(tinytl.UserError, match=message) as error:
            tinytl.load(network, folder, name="other")
        assert "\n" not in str(error.value) and "other" in str(error.value)
        after = network.state_dict()
        assert list(before) == list(after) and all(torch.equal(after[name], t) for name, t in before.items())
        assert torch.equal(logits(network), out)
    assert all(p.requires_grad for p in fresh.parameters()) and tinytl.summary(loaded).adapters == (
        "flowers",
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda folder, _: tinytl.load(tiny(seed=1), folder), "whose frozen weights have the SHA-256"),
        (lambda folder, _: tinytl.load(timm.create_model("resnet18", num_classes=3), folder),
         "trained on tinytl_tiny .*this network is resnet18"),
        (lambda folder, _: tinytl.load(ResNet(3), folder), "no get_classifier"),
        (lambda folder, _: tinytl.load(tinytl.load(tiny(), folder), folder), "default is loaded already"),
        (lambda folder, _: tinytl.load(tinytl.adapt(tiny(), tinytl.Config(method="bias")), folder, "other"),
         "method=tinytl; this network has method=bias|SHA-256"),
        (lambda folder, _: tinytl.load(tinytl.adapt(tiny(), tinytl.Config(quantize="off")), folder, "other"),
         "SHA-256"),
        (lambda folder, empty: tinytl.load(tiny(), empty), "no adapter is there"),
        (lambda _, empty: tinytl.save(trained(tiny(), 0), empty, class_names=["rose"]), "1 class names"),
        (lambda _, empty: tinytl.save(trained(tiny(), 0), empty, std=[1, 1, 0]), "is positive"),
        (lambda _, empty: tinytl.save(trained(tiny(), 0), empty, mean=[1]), "one finite number"),
        (lambda _, empty: tinytl.save(trained(tiny(), 0), empty, metrics={"a": float("nan")}), "a is nan"),
    ],
)  # fmt: skip
def test_both_sides_are_named(flowers, tmp_path, act, message):
    with pytest.raises(tinytl.UserError, match=message):
        act(flowers[0], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lean", [True, False])
def test_gray_images_have_one_mean(tmp_path, lean):
    """timm's record of a network says three channels, whatever its first convolution takes."""
    network = timm.create_model("tinytl_tiny", num_classes=3, in_chans=1)
    network = tinytl.adapt(network, tinytl.Config(lean=lean))
    with pytest.raises(tinytl.UserError, match=r"mean=.*one finite number .*channels: 1"):
        tinytl.save(network, tmp_path / "gray", mean=[0.5, 0.5, 0.5], std=[0.5])
    tinytl.save(network, tmp_path / "gray")
    assert json.loads((tmp_path / "gray" / "adapter_config.json").read_text())["mean"] is None
    tinytl.save(network, tmp_path / "gray", mean=[0.5], std=[0.25])
    record = json.loads((tmp_path / "gray" / "adapter_config.json").read_text())
    assert (record["mean"], record["std"]) == ([0.5], [0.25])


def test_two_files_that_differ_are_refused(flowers, tmp_path):
    folder = damaged(flowers[0], tmp_path / "edited", lambda tensors, record: None)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace("tulip", "weed"))
    with pytest.raises(tinytl.UserError, match=r"adapter_config\.json says class_names=.*weed.*tulip"):
        tinytl.load(tiny(), folder)
    config.write_text("{")
    with pytest.raises(tinytl.UserError, match=r"adapter_config\.json cannot be read"):
        tinytl.load(tiny(), folder)
    config.unlink()  # the tensors hold the record, too
    tinytl.load(tiny(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(tinytl.UserError, match="edited"):
        tinytl.load(tiny(), folder)


@pytest.mark.parametrize("lean", [True, False])
def test_unload_gives_the_plain_network_with_the_active_adapter(flowers, lean):
    folder, expected = flowers
    network = tinytl.load(tiny(), folder, name="flowers", lean=lean)
    plain = tinytl.unload(network)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    assert plain is network and type(plain.conv_stem) is torch.nn.Conv2d
    assert plain.conv_stem.weight.dtype == torch.float32
    plain.train()
    assert all(module.training for module in plain.modules())
    with pytest.raises(tinytl.UserError, match="not adapted"):
        tinytl.summary(plain)
    again = tinytl.load(plain, folder)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)

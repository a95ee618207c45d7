"""Test our own checkpoints: what they restore, and on which starting weights they load."""

import json
import logging
import shutil
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tinytl.errors import UserError
from tinytl.methods import freeze
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.quantize import quantize_frozen
from tinytl.networks.spec import NetworkSpec
from tinytl.weights import checkpoints
from tinytl.weights.build import build_network
from tinytl.weights.own_checkpoints import frozen_sha256, own_record, save_trained, trainable_state

MODEL = "proxylessnas_w03"
OLDER = ("spec", "method", "quantize", "blocks")  # what older versions recorded
MEAN, STD = [0.0, 0.1, 0.2], [1.0, 0.5, 0.25]


def spec(checkpoint, classes=3):
    checkpoint = None if checkpoint is None else str(checkpoint)
    return NetworkSpec(MODEL, "gn", classes, LiteResidualConfig(), checkpoint=checkpoint)


@cache
def random_network(seed):
    return build_network(NetworkSpec(MODEL, "gn", 9, LiteResidualConfig(), seed=seed))


def base_file(path, seed=1):
    """Weights that a run may begin with."""
    checkpoints.save(random_network(seed), path)
    return path


def train(path, base, method="tinytl", quantize: Any = "int8", changes=(), seed=0):
    """A network as a run leaves it, and its checkpoint at `path`, in either format."""
    described = spec(base)
    network = build_network(described)
    freeze(network, method)
    quantize_frozen(network, quantize)
    record = own_record(
        described, method, quantize, network=network, mean=MEAN, std=STD, resolution=32,
        class_names=("ant", "bee", "cat"),
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    write(path, trainable_state(network, "gn"), {**record, **dict(changes)})
    return network


def write(path, state, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_trained(path, state, record)
    else:
        state = {f"network.{name}": tensor.clone() for name, tensor in state.items()}
        torch.save({"state_dict": state, "tinytl": record}, path)


def rewrite(path, **changes):
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        content["tinytl"][key] = value
    torch.save(content, path)


def assert_same(network, other):
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "method", "quantize"),
    [
        ("best.ckpt", "tinytl", "int8"),
        ("weights.safetensors", "tinytl_l", "int8"),
        ("best.ckpt", "last", "off"),
        ("weights.safetensors", "full", "off"),
    ],
)
def test_the_trained_network_comes_back(tmp_path, name, method, quantize):
    """It holds the trainable part only; the rest comes from what the run began with."""
    base = base_file(tmp_path / "base.safetensors")
    network = train(tmp_path / name, base, method, quantize)
    again = build_network(spec(tmp_path / name))
    assert_same(network, again)
    assert [*again.pretrained_cfg["mean"], *again.pretrained_cfg["std"]] == MEAN + STD
    own = checkpoints.read(str(tmp_path / name), MODEL).own
    assert own is not None
    assert (own.class_names, own.resolution, own.base_path) == (["ant", "bee", "cat"], 32, str(base))
    assert checkpoints.holds_lite_residuals(str(tmp_path / name), MODEL)


def test_an_older_file_with_the_statistics_of_the_backbone(tmp_path):
    """The hash is of what a file does not hold; older versions wrote all statistics."""
    described = replace(spec("embedded"), norm="bn_frozen")
    network = build_network(described)
    freeze(network, "bias")
    statistics = {k: v for k, v in network.state_dict().items() if "running" in k or "tracked" in k}
    held = {**trainable_state(network, "bn_frozen"), **statistics}
    assert len(held) > len(trainable_state(network, "bn_frozen"))
    record = own_record(
        described, "bias", "off", network=network, mean=MEAN, std=STD, resolution=32, class_names="abc"
    )
    record["frozen_sha256"] = frozen_sha256(network, held)
    write(tmp_path / "old.safetensors", held, record)
    assert_same(network, build_network(replace(described, checkpoint=str(tmp_path / "old.safetensors"))))


def test_as_many_classes_of_other_names_get_a_new_classifier(tmp_path, caplog):
    trained = train(tmp_path / "own.ckpt", base_file(tmp_path / "base.safetensors")).get_classifier().weight

    def classifier(*names):
        return build_network(spec(tmp_path / "own.ckpt"), names).get_classifier().weight

    assert torch.equal(classifier("ant", "bee", "cat"), trained) and "other classes" not in caplog.text
    assert classifier("ant", "bee", "dog").abs().max() < trained.abs().max() / 2
    assert "trained for other classes: the classifier begins anew" in caplog.text


def test_other_classes_get_a_new_classifier_and_the_same_mean(tmp_path):
    network = train(tmp_path / "own.ckpt", base_file(tmp_path / "base.safetensors"))
    again = build_network(spec(tmp_path / "own.ckpt", classes=7))
    assert len(again.get_classifier().weight) == 7 and again.pretrained_cfg["mean"] == tuple(MEAN)
    assert torch.equal(again.conv_stem.weight, network.conv_stem.weight)


def test_a_file_of_what_was_trained_is_small_and_says_what_it_is(tmp_path):
    train(tmp_path / "weights.safetensors", base := base_file(tmp_path / "base.safetensors"))
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        record = json.loads(file.metadata()["tinytl"])
        assert "classifier.weight" in file.keys() and "conv_stem.weight" not in file.keys()  # noqa: SIM118
    assert record["spec"]["checkpoint"] == str(base) and record["class_names"] == ["ant", "bee", "cat"]
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left


def test_the_hash_is_of_the_frozen_part_alone():
    network = build_network(spec(None))
    freeze(network, "tinytl")
    held = trainable_state(network, "gn")
    before = frozen_sha256(network, held)
    with torch.no_grad():
        network.get_classifier().weight.add_(1)
        network.bn1.bias.add_(1)
    assert frozen_sha256(network, held) == before
    with torch.no_grad():
        network.conv_stem.weight[0, 0, 0, 0] += 1e-3
    assert frozen_sha256(network, held) != before


@pytest.mark.parametrize("base", [None, "embedded", "file URL"])
def test_bases_that_are_no_path(tmp_path, base):
    if base == "file URL":
        base = base_file(tmp_path / "base.safetensors").as_uri()
    network = train(tmp_path / "own.ckpt", base)
    assert_same(network, build_network(spec(tmp_path / "own.ckpt")))


@pytest.mark.parametrize("move", ["everything, here", "everything", "beside", "nothing, elsewhere"])
def test_the_base_is_found_after_a_move(tmp_path, monkeypatch, move):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    base = base_file(tmp_path / "old" / "weights" / "base.safetensors").relative_to(tmp_path / "old")
    network = train(tmp_path / "old" / "outputs" / "run" / "checkpoints" / "best.ckpt", base)
    checkpoint = tmp_path / "old" / "outputs" / "run" / "checkpoints" / "best.ckpt"
    monkeypatch.chdir(tmp_path)
    if move == "beside":
        (tmp_path / "old" / base).rename(checkpoint.with_name("base.safetensors"))
    elif move != "nothing, elsewhere":
        (tmp_path / "old").rename(tmp_path / "new")
        checkpoint = tmp_path / "new" / "outputs" / "run" / "checkpoints" / "best.ckpt"
    if move == "everything, here":
        monkeypatch.chdir(tmp_path / "new")
    assert_same(network, build_network(spec(checkpoint)))


def test_the_right_base_beside_it_is_taken_where_the_recorded_one_was_replaced(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    network = train(tmp_path / "run" / "own.ckpt", base)
    shutil.copy(base, tmp_path / "run" / "base.safetensors")
    base_file(base, seed=2)
    assert_same(network, build_network(spec(tmp_path / "run" / "own.ckpt")))


def test_another_base_is_refused_with_both_hashes(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    train(tmp_path / "own.ckpt", base)
    recorded = torch.load(tmp_path / "own.ckpt", weights_only=True)["tinytl"]["frozen_sha256"]
    base_file(base, seed=2)
    other = build_network(spec(base))
    freeze(other, "tinytl")
    quantize_frozen(other, "int8")
    sha256 = frozen_sha256(other, trainable_state(other, "gn"))
    with pytest.raises(UserError) as error:
        build_network(spec(tmp_path / "own.ckpt"))
    message = str(error.value)
    assert str(base) in message and str(tmp_path / "own.ckpt") in message and "\n" not in message
    assert recorded in message and sha256 in message and recorded != sha256


def test_a_missing_base_is_refused_with_its_hash_and_path(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    train(tmp_path / "own.ckpt", base)
    recorded = torch.load(tmp_path / "own.ckpt", weights_only=True)["tinytl"]["frozen_sha256"]
    base.unlink()
    with pytest.raises(UserError, match=f"base it was trained from is missing, .*{recorded}.*{base}"):
        build_network(spec(tmp_path / "own.ckpt"))


def test_what_was_trained_in_full_needs_no_base(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    network = train(tmp_path / "own.ckpt", base, "full", "off")
    base.unlink()
    assert_same(network, build_network(spec(tmp_path / "own.ckpt")))


def test_a_broken_base_is_named(tmp_path):
    base = base_file(tmp_path / "base.safetensors")
    train(tmp_path / "own.ckpt", base)
    base.write_bytes(base.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"own\.ckpt: its base cannot be used: .*base\.safetens.*cut off"):
        build_network(spec(tmp_path / "own.ckpt"))


def test_a_checkpoint_that_began_from_a_checkpoint(tmp_path):
    train(tmp_path / "a.ckpt", base_file(tmp_path / "base.safetensors"), "last")
    network = train(tmp_path / "b.ckpt", tmp_path / "a.ckpt")
    assert_same(network, build_network(spec(tmp_path / "b.ckpt")))
    train(tmp_path / "a.ckpt", tmp_path / "base.safetensors", "last", seed=5)  # its classifier is not frozen
    assert_same(network, build_network(spec(tmp_path / "b.ckpt")))
    base_file(tmp_path / "base.safetensors", seed=2)
    with pytest.raises(UserError, match=r"b\.ckpt: its base cannot be used: .*a\.ckpt: .*is not the base"):
        build_network(spec(tmp_path / "b.ckpt"))


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_that_is_its_own_base(tmp_path, link, older):
    base = base_file(tmp_path / "base.safetensors")
    for name, other in (("one", "two"), ("two", "one"), ("itself", "itself")):
        train(tmp_path / f"{name}.ckpt", base)
        (tmp_path / f"{other}.link").symlink_to(f"{other}.ckpt")
        path = str(tmp_path / (f"{other}.link" if link else f"{other}.ckpt"))
        content = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        content["tinytl"]["spec"]["checkpoint"] = content["tinytl"]["base_path"] = path
        if older:
            content["tinytl"] = {
                key: content["tinytl"][key] for key in ("spec", "method", "quantize", "blocks")
            }
        torch.save(content, tmp_path / f"{name}.ckpt")
    for name in ("one", "two", "itself"):
        with pytest.raises(UserError, match="its own base, directly or through others"):
            build_network(spec(tmp_path / f"{name}.ckpt"))


def test_a_file_of_the_base_s_name_that_is_the_checkpoint_itself(tmp_path):
    base = base_file(tmp_path / "first" / "best.safetensors")
    train(tmp_path / "second" / "best.safetensors", base)
    base.unlink()
    with pytest.raises(UserError, match="is missing"):
        build_network(spec(tmp_path / "second" / "best.safetensors"))


def test_a_checkpoint_of_an_older_version_is_read_with_a_warning(tmp_path, caplog):
    base = base_file(tmp_path / "base.safetensors")
    network = train(tmp_path / "old.ckpt", base)
    content = torch.load(tmp_path / "old.ckpt", weights_only=True)
    content["tinytl"] = {key: content["tinytl"][key] for key in OLDER}
    torch.save(content, tmp_path / "old.ckpt")
    with caplog.at_level(logging.WARNING):
        assert_same(network, build_network(spec(tmp_path / "old.ckpt")))
    assert f"that {base} is its base cannot be checked" in caplog.text
    base.unlink()
    with pytest.raises(UserError, match=f"is missing: .*{base}"):
        build_network(spec(tmp_path / "old.ckpt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {"unknown": 1}}, r"spec\.unknown is not known"),
        ({"spec": {"model": MODEL}}, r"spec\.norm is missing"),
        ({"spec": None}, "it has no spec"),
        ({"spec": {"model": MODEL, "norm": "gn", "num_classes": "3"}}, r"spec\.num_classes='3' cannot be"),
        ({"spec": {"model": MODEL, "norm": "layer", "num_classes": 3}}, r"spec\.norm='layer' cannot be"),
        (
            {"spec": {"model": MODEL, "norm": "gn", "num_classes": 3, "lite_residual": {"depth": 2}}},
            r"spec\.lite_residual\.depth is not known",
        ),
        ({"temperature": 2.0}, "temperature is not known"),
        ({"method": "lora"}, "method=lora is not known"),
        ({"quantize": "int4"}, "quantize='int4' cannot be"),
        ({"mean": [0.0]}, r"mean=\[0\.0\] cannot be"),
        ({"std": [1.0, 0.0, 1.0]}, "std=.* cannot be"),
        ({"class_names": [1, 2, 3]}, "class_names=.* cannot be"),
    ],
)
def test_a_record_of_another_version(tmp_path, changes, message):
    base = base_file(tmp_path / "base.safetensors")
    train(tmp_path / "newer.ckpt", base)
    rewrite(tmp_path / "newer.ckpt", **changes)
    with pytest.raises(UserError, match=rf"newer\.ckpt: its record is damaged or of another.*{message}"):
        build_network(spec(tmp_path / "newer.ckpt"))
    with pytest.raises(UserError, match=message):
        checkpoints.holds_lite_residuals(str(tmp_path / "newer.ckpt"), MODEL)


@pytest.mark.parametrize("record", [3, "text", ["spec"], {"method": "tinytl"}])
def test_a_record_that_is_none(tmp_path, record):
    torch.save({"state_dict": {}, "tinytl": record}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt: its record is damaged"):
        build_network(spec(tmp_path / "odd.ckpt"))


@pytest.mark.parametrize("torn", ["nothing", "one less", "one more"])
def test_a_checkpoint_that_lacks_what_was_trained(tmp_path, torn):
    train(tmp_path / "own.ckpt", base_file(tmp_path / "base.safetensors"))
    content = torch.load(tmp_path / "own.ckpt", weights_only=True)
    if torn == "nothing":
        content["state_dict"] = {}
    elif torn == "one less":
        del content["state_dict"]["network.classifier.bias"]
    else:
        content["state_dict"]["network.conv_stem.weight"] = torch.zeros(16, 3, 3, 3)
    torch.save(content, tmp_path / "own.ckpt")
    name = {
        "nothing": r"\(\d+ in all\)",
        "one less": "lacks classifier.bias",
        "one more": "holds the untrained conv_stem",
    }
    with pytest.raises(UserError, match=rf"own\.ckpt: damaged: it .*{name[torn]}"):
        build_network(spec(tmp_path / "own.ckpt"))


def test_a_record_that_is_no_json(tmp_path):
    save_file({"classifier.bias": torch.zeros(3)}, tmp_path / "w.safetensors", {"tinytl": "{'spec'"})
    with pytest.raises(UserError, match=r"w\.safetensors: its metadata is damaged"):
        build_network(spec(tmp_path / "w.safetensors"))

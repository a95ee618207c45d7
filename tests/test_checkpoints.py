"""Starting weights in every format, and what is said of those that do not fit."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tinytl.backbones import checkpoints
from tinytl.backbones.build import NetworkSpec, build_network, own_record
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.backbones.quantize import quantize_frozen
from tinytl.errors import UserError
from tinytl.methods import freeze

LITE = LiteResidualConfig()


def spec(checkpoint, norm: Any = "gn", lite: Any = LITE, classes=1000, model="proxylessnas_mobile"):
    return NetworkSpec(model, norm, classes, lite, checkpoint=str(checkpoint))


def test_new_head_for_other_classes(published):
    network = build_network(spec(published["gn_lite"], classes=7))
    assert network.get_classifier().weight.shape == (7, 1280)
    assert network.get_classifier().weight.abs().max() <= 1280**-0.5  # the paper's: uniform +-1/sqrt(1280)
    again = build_network(spec(published["gn_lite"]))
    assert torch.equal(network.conv_stem.weight, again.conv_stem.weight)


def test_batch_norm_checkpoint_starts_lite_residuals_at_random(published, caplog):
    build_network(spec(published["bn"], norm="bn_frozen"))
    assert "they start at random" in caplog.text


def test_batch_norm_checkpoint_in_a_group_norm_network_warns(published, caplog):
    build_network(spec(published["bn"], lite=None))
    assert "statistics are dropped" in caplog.text


def test_misfits_are_named(published, tmp_path):
    state = torch.load(published["gn_lite"], weights_only=True)["state_dict"]
    del state["first_conv.bn.bias"]
    state["blocks.99.conv.weight"] = torch.zeros(1)
    state["first_conv.conv.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save(state, tmp_path / "misfit.pth")
    with pytest.raises(UserError) as error:
        build_network(spec(tmp_path / "misfit.pth"))
    message = str(error.value)
    assert "missing bn1.bias (1 in all)" in message
    assert "unexpected blocks.99.conv.weight (1 in all)" in message
    assert "mis-shaped conv_stem.weight (1, 2, 3, 3) for (32, 3, 3, 3)" in message
    assert "\n" not in message


def test_lite_residual_checkpoint_needs_lite_residuals(published):
    with pytest.raises(UserError, match=r"unexpected .*lite_residual.*\(114 in all\)"):
        build_network(spec(published["gn_lite"], lite=None))


def test_another_models_checkpoint(published):
    with pytest.raises(UserError, match="which model=mobilenetv2_100 is not"):
        build_network(spec(published["bn"], "bn", None, model="mobilenetv2_100"))


def test_the_older_published_naming(published, tmp_path):
    state = torch.load(published["bn"], weights_only=True)["state_dict"]
    old = {key.replace(".conv.", ".mobile_inverted_conv.", 1) if key.startswith("blocks") else key: value
           for key, value in state.items()}  # fmt: skip
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    ours = build_network(spec(published["bn"], "bn", None)).state_dict()
    theirs = build_network(spec(tmp_path / "old.pth", "bn", None)).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_safetensors_and_file_urls(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    network = build_network(NetworkSpec("mobilenetv2_100", "bn", 5, seed=3))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    for source in (tmp_path / "weights.safetensors", (tmp_path / "weights.safetensors").as_uri()):
        loaded = build_network(spec(source, "bn", None, 5, "mobilenetv2_100"))
        states = loaded.state_dict().values(), network.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_no_code_is_unpickled(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "broken-in"), "w"))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="not a readable file of weights"):
        build_network(spec(tmp_path / "hostile.pth"))
    assert not (tmp_path / "broken-in").exists()


@pytest.mark.parametrize("source", ["nowhere.pth", "file:///nowhere/weights.pth"])
def test_a_checkpoint_that_is_not_there(source, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=f"checkpoint={source}"):
        build_network(spec(source))


def test_timm_weights_without_network(monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(UserError, match=r"checkpoint=resnet18.a1_in1k: timm cannot fetch.*offline"):
        checkpoints.read("resnet18.a1_in1k", "resnet18")


def test_a_corrupt_file(tmp_path):
    (tmp_path / "corrupt.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"corrupt\.pth: not a readable file of weights"):
        build_network(spec(tmp_path / "corrupt.pth"))


@pytest.mark.parametrize("quantize", ["int8", "off"])
def test_our_own_checkpoint_gives_the_trained_network_back(published, tmp_path, quantize):
    """It holds the trainable part only; the rest comes from what the run began with."""
    start = spec(published["gn_lite"], classes=5)
    network = build_network(start)
    freeze(network, "tinytl")
    quantize_frozen(network, quantize)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    state = {f"network.{k}": v for k, v in checkpoints.trainable_state(network).items()}
    torch.save({"state_dict": state, "tinytl": own_record(start, "tinytl", quantize)}, tmp_path / "own.ckpt")
    assert len(state) == 158
    again = build_network(spec(tmp_path / "own.ckpt", classes=5))
    for (name, a), b in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

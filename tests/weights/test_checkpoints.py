"""Starting weights load from every format; those that do not fit are reported."""

import copy
import gzip
import os
import pickle
import tarfile
import zipfile
from argparse import Namespace
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from tinytl.errors import UserError
from tinytl.methods import freeze
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights import checkpoints
from tinytl.weights.build import build_network, head_classes
from tinytl.weights.own_checkpoints import own_record, save_trained, trainable_state

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


def small(checkpoint, norm: Any = "bn"):
    return NetworkSpec(
        "proxylessnas_w03", norm, 5, checkpoint=None if checkpoint is None else str(checkpoint)
    )


@pytest.fixture(scope="module")
def network():
    return build_network(NetworkSpec("proxylessnas_w03", "bn", 5, seed=3))


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(network, other):
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def averages(state):
    return {name: tensor + 1 for name, tensor in state.items()}


AS_TRAINERS_SAVE = {
    "model": lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "averages beside": lambda s: {"state_dict_ema": averages(s), "state_dict": s},
    "averages alone": lambda s: {"model_ema": s, "optimizer": None},
    "averaged model": lambda s: {"model_ema": {"n_averaged": torch.tensor(4), **prefixed(s, "module.")}},
    "nested": lambda s: {"model": {"state_dict": s}, "ema": {"module": averages(s)}},
    "a name of its own": lambda s: {
        "my_net": s,
        "args": Namespace(lr=0.1, name="x"),
        "best": numpy.float64(1),
    },
    "tensors beside it": lambda s: {"epoch": torch.tensor(3), "model": s},
    "numbers among them": lambda s: {**s, "epoch": 3},
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled DDP": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "any prefix": lambda s: prefixed(s, "trunk.of.this."),
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("kind", AS_TRAINERS_SAVE)
def test_files_of_other_trainers(network, tmp_path, caplog, kind):
    state = state_of(network)
    torch.save(AS_TRAINERS_SAVE[kind](state), tmp_path / "theirs.pth")
    loaded = build_network(small(tmp_path / "theirs.pth"))
    if kind == "half precision":
        network = copy.deepcopy(network).half().float()
    assert_same(loaded, network)
    assert ("state_dict is read, not state_dict_ema" in caplog.text) == (kind == "averages beside")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights.ckpt"])
@pytest.mark.parametrize(
    "write", [save_file, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)]
)
def test_the_content_tells_the_format_not_the_name(network, tmp_path, name, write):
    write(state_of(network), tmp_path / name)
    for source in (tmp_path / name, (tmp_path / name).as_uri()):
        assert_same(build_network(small(source)), network)


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('_', '.')}", content)


def tarred(path, _):
    with tarfile.open(path, "w") as file:
        file.add(__file__)


class Hostile:
    def __reduce__(self):
        return (open, (os.environ["BROKEN_IN"], "w"))


def torn(write):
    def written(path, state):
        write(state, path)
        path.write_bytes(path.read_bytes()[:-5000])

    return written


def flipped(path, state):
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.find(state["conv_stem.weight"].numpy().tobytes()) + 6] ^= 64
    path.write_bytes(content)


def spoilt(**changes):
    return lambda path, state: torch.save({**state, **changes}, path)


STEM = torch.zeros(16, 3, 3, 3)
NO_WEIGHTS = {
    "empty": (lambda path, _: path.write_bytes(b""), "an empty file"),
    "a page": (lambda path, _: path.write_text("\n <!DOCTYPE html><p>404"), "a web page"),
    "a Git LFS pointer": (
        lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "Git LFS",
    ),
    "text": (lambda path, _: path.write_text("not weights"), "a text file"),
    "bytes": (lambda path, _: path.write_bytes(b"\1\2\3"), "not a file of PyTorch or safetensors"),
    "JSON": (lambda path, _: path.write_text('{"args":{}}'), "a text file"),
    "HDF5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n"), "an HDF5 file"),
    "gzip": (lambda path, _: path.write_bytes(gzip.compress(b"weights")), "compressed by gzip"),
    "tar": (tarred, "a tar archive"),
    "ONNX": (lambda path, _: path.with_suffix(".onnx").write_bytes(b"\x08\x07"), "an ONNX model"),
    "TensorFlow Lite": (lambda path, _: path.write_bytes(b"\x1c\0\0\0TFL3"), "a TensorFlow Lite model"),
    "an archive": (lambda path, _: archive(path, readme_txt="x"), "without weights of PyTorch"),
    "NumPy's archive": (lambda path, _: archive(path, weight_npy="x"), "NumPy arrays"),
    "NumPy arrays": (
        lambda path, _: torch.save({"a": numpy.ones(2)}, path),
        "NumPy arrays, which are not read",
    ),
    "TorchScript": (lambda path, _: archive(path, data_pkl="x", constants_pkl="x"), "TorchScript"),
    "code": (
        lambda path, _: torch.save({"state_dict": Hostile()}, path),
        "holds io.open, an object that would run",
    ),
    "pickled code": (
        lambda path, _: path.write_bytes(pickle.dumps(Hostile())),
        "pickle that torch.save has not",
    ),
    "code of old": (
        lambda path, _: path.write_bytes(pickle.dumps(Hostile(), 2)),
        "holds __builtin__.open|io.open",
    ),
    "a whole network": (
        lambda path, _: torch.save(torch.nn.ReLU(), path),
        "torch.nn.modules.activation.ReLU",
    ),
    "cut off": (torn(torch.save), "cut off or damaged"),
    "cut off, old": (torn(partial(torch.save, _use_new_zipfile_serialization=False)), "cut off or damaged"),
    "cut off, safetensors": (torn(save_file), "cut off or damaged"),
    "a flipped bit": (flipped, r"damaged \(the checksum of .* does not fit"),
    "a tensor": (lambda path, _: torch.save(torch.ones(2), path), "holds a Tensor, not named tensors"),
    "a list": (lambda path, _: torch.save([torch.ones(2)], path), "holds a list, not named tensors"),
    "numbers": (lambda path, _: torch.save({"epoch": 3}, path), r"no named tensors \(it has epoch\)"),
    "numbered": (lambda path, _: torch.save({3: torch.ones(2)}, path), "holds tensors by 3, not by name"),
    "two unknown": (
        lambda path, s: torch.save({"old": s, "new": s}, path),
        r"several state dicts \(old, new\)",
    ),
    "NaN": (spoilt(**{"conv_stem.weight": STEM / 0}), r"conv_stem.weight holds NaN"),
    "infinite": (spoilt(**{"conv_stem.weight": STEM + 1e300}), "conv_stem.weight holds infinite values"),
    "too large": (
        spoilt(**{"conv_stem.weight": STEM.double() + 1e300}),
        "conv_stem.weight holds infinite values",
    ),
    "meta": (spoilt(**{"conv_stem.weight": STEM.to("meta")}), "conv_stem.weight has a shape only"),
    "sparse": (spoilt(**{"conv_stem.weight": STEM.to_sparse()}), "conv_stem.weight is sparse"),
    "integers": (
        spoilt(**{"conv_stem.weight": STEM.char()}),
        "mis-typed conv_stem.weight torch.int8 for torch.f",
    ),
    "another network": (
        lambda path, _: torch.save({"layer9.weight": STEM}, path),
        "unexpected layer9.weight",
    ),
    "a folder": (lambda path, _: path.mkdir(), "a folder, not a file of weights"),
    "no file": (lambda path, _: None, "no such file"),
    "a pipe": (lambda path, _: os.mkfifo(path), "not a regular file"),
    "a dangling link": (lambda path, _: path.symlink_to("nowhere"), "not a regular file"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_file_of_weights_is_told_in_one_line(network, tmp_path, monkeypatch, kind):
    """In our words, without torch's advice to run the code in it, and without running it."""
    monkeypatch.setenv("BROKEN_IN", str(tmp_path / "broken-in"))
    write, message = NO_WEIGHTS[kind]
    path = tmp_path / "theirs.pth"
    write(path, state_of(network))
    path = next(tmp_path.glob("theirs*"), path)
    for read in (build_network, lambda spec: head_classes(spec.checkpoint, spec.model)):
        with pytest.raises(UserError, match=message) as error:
            read(small(path))
        assert str(error.value).startswith(f"checkpoint={path}")
        assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
        if kind in ("integers", "another network"):  # only the network tells
            break
    if path.is_file() and kind not in ("integers", "another network"):
        with pytest.raises(UserError, match=message):
            checkpoints.holds_lite_residuals(str(path), "proxylessnas_w03")
    assert not (tmp_path / "broken-in").exists()


def test_a_run_s_folder_is_told_which_file_is_meant(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a folder; .*checkpoints/best\.ckpt is probably meant"):
        build_network(small(tmp_path))


@pytest.mark.parametrize(
    ("source", "near"),
    [("{0}/bset.ckpt", "{0}/best.ckpt"), ("mobilenetv2_100.ra_in1", "mobilenetv2_100.ra_in1k")],
)
def test_a_typing_error_is_told_what_is_near(tmp_path, source, near):
    (tmp_path / "best.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=f"did you mean {near.format(tmp_path)}"):
        build_network(small(source.format(tmp_path)))


def test_our_own_checkpoint_of_another_model(network, tmp_path):
    freeze(network, "full")
    record = own_record(
        small(None),
        "full",
        "off",
        network=network,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        resolution=32,
        class_names=[],
    )
    save_trained(tmp_path / "weights.safetensors", trainable_state(network, "gn"), record)
    with pytest.raises(UserError, match="of model=proxylessnas_w03, not proxylessnas_mobile"):
        build_network(spec(tmp_path / "weights.safetensors"))


def test_an_unknown_model_is_told_first(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    for ask in (checkpoints.holds_lite_residuals, head_classes):
        with pytest.raises(UserError, match=r"model=mobilnetv2_100: .*did you mean mobilenetv2_100"):
            ask(str(tmp_path / "weights.pth"), "mobilnetv2_100")


def test_a_whole_network_keeps_the_mean_of_its_images(network, tmp_path):
    network = copy.deepcopy(network)
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.0, 0.1, 0.2), "std": (1.0, 0.5, 0.25)}
    checkpoints.save(network, tmp_path / "weights.safetensors")
    again = build_network(small(tmp_path / "weights.safetensors"))
    assert_same(again, network)
    assert (*again.pretrained_cfg["mean"], *again.pretrained_cfg["std"]) == (0.0, 0.1, 0.2, 1.0, 0.5, 0.25)


@pytest.mark.parametrize("metadata", ["{", '{"mean": [1, 2]}', '{"std": [1, 1, 0]}', '{"mean": "abc"}', "[]"])
def test_damaged_metadata(network, tmp_path, metadata):
    save_file(state_of(network), tmp_path / "weights.safetensors", {"pretrained_cfg": metadata})
    with pytest.raises(UserError, match="damaged"):
        build_network(small(tmp_path / "weights.safetensors"))

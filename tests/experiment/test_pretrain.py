"""Test pre-training, norm adaptation, and the starting weights in the package."""

import json

import numpy
import pytest
import torch
from fake_data import FAKE
from PIL import Image
from processes import ROOT
from safetensors.torch import load_file
from tiny_network import TINY

from tinytl.adaptation.probe import linear_probe
from tinytl.data import digits
from tinytl.data.images import Images
from tinytl.data.splits import Splits
from tinytl.data.transforms import test_transform as evaluation_transform
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

FAST = ["debug=fast", "data.workers=0", "resolution=32", "batch_size=4"]
INTERRUPTED = [*FAKE, "data.loader=fake_data.load_interrupted"]


@pytest.fixture
def pretrain(program):
    """Runs `python src/pretrain.py ARGUMENTS`; returns how it ended."""

    def run(*arguments):
        return program(*FAST, *arguments, "name=run", script="pretrain.py")

    return run


def results(tmp_path):
    return json.loads((tmp_path / "outputs" / "run" / "results.json").read_text())


def images(folder, count=12):
    folder.mkdir(parents=True)
    rng = numpy.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=numpy.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_pretraining_ends_in_a_file_that_a_run_starts_from(pretrain, program, tmp_path, norm):
    done = pretrain(f"norm={norm}", *FAKE)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path)["params"]["trainable"] == results(tmp_path)["params"]["total"]
    path = tmp_path / "outputs" / "run" / "weights.safetensors"
    saved = torch.load(tmp_path / "outputs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    weights = load_file(path)
    assert any(".lite_residual." in name for name in weights)
    assert torch.equal(weights["conv_stem.weight"], saved["network.conv_stem.weight"])
    # a method without lite residuals of its own keeps those of the file
    used = program("debug=fast", "method=last", f"norm={norm}", f"checkpoint={path}", *FAKE)
    assert used.returncode == 0, used.stderr
    assert "start at random" not in used.stderr


def test_pretraining_goes_on_where_it_was(pretrain, tmp_path, monkeypatch):
    """Two epochs at once, or one and then another, end in the same weights."""
    two = [*INTERRUPTED, "trainer.limit_train_batches=1.0", "dropout=0.0"]
    assert pretrain(*two, "epochs=2").returncode == 0
    at_once = load_file(tmp_path / "outputs" / "run" / "weights.safetensors")
    (tmp_path / "outputs" / "run").rename(tmp_path / "whole")
    monkeypatch.setenv("INTERRUPT_AFTER", "1")
    stopped = pretrain(*two, "epochs=2")
    monkeypatch.delenv("INTERRUPT_AFTER")
    assert results(tmp_path)["status"] == "interrupted", stopped.stderr
    done = pretrain(*two, "epochs=2", "resume=true")
    assert done.returncode == 0, done.stderr
    resumed = load_file(tmp_path / "outputs" / "run" / "weights.safetensors")
    for name, tensor in at_once.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-5)


def test_an_adaptation_goes_on_where_it_was(pretrain, tmp_path, monkeypatch):
    """Also in the middle of the conversion, where layers of both kinds are there."""
    torch.save(build_network(NetworkSpec("tinytl_tiny", "bn", 9)).state_dict(), tmp_path / "teacher.pth")
    two = [f"teacher={tmp_path}/teacher.pth", *INTERRUPTED, "trainer.limit_train_batches=1.0"]
    assert pretrain(*two, "epochs=2").returncode == 0
    at_once = load_file(tmp_path / "outputs" / "run" / "weights.safetensors")
    (tmp_path / "outputs" / "run").rename(tmp_path / "whole")
    monkeypatch.setenv("INTERRUPT_AFTER", "2")  # scales and shifts are fitted on the images first
    stopped = pretrain(*two, "epochs=2")
    monkeypatch.delenv("INTERRUPT_AFTER")
    assert results(tmp_path)["status"] == "interrupted", stopped.stderr
    saved = torch.load(tmp_path / "outputs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < saved["converted"] < 20 and saved["epoch"] == 0
    done = pretrain(*two, "epochs=2", "resume=true")
    assert done.returncode == 0, done.stderr
    resumed = load_file(tmp_path / "outputs" / "run" / "weights.safetensors")
    for name, tensor in at_once.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-5)


def test_norm_adaptation(pretrain, program, tmp_path):
    """On images without labels; reports what survives, and ends in a file for norm=gn."""
    images(tmp_path / "images" / "deep" / "below")
    for part in ("train", "test"):
        for name in ("a", "b"):
            images(tmp_path / "probe" / part / name, count=6)
    teacher = build_network(NetworkSpec("tinytl_tiny", "bn", 9))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    done = pretrain(
        f"teacher={tmp_path}/teacher.pth", "data=unlabelled", f"data.root={tmp_path}/images",
        f"probe={tmp_path}/probe", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"weights: {tmp_path}/teacher.pth" in done.stdout + done.stderr
    metrics = results(tmp_path)["metrics"]
    assert 0 <= metrics["test/agreement"] <= 1
    assert metrics["probe/kept"] == pytest.approx(metrics["probe/top1"] / metrics["probe/teacher_top1"])
    path = tmp_path / "outputs" / "run" / "weights.safetensors"
    assert not any("running_mean" in name for name in load_file(path))
    used = program("debug=fast", "norm=gn", f"checkpoint={path}", *FAKE)
    assert used.returncode == 0, used.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["teacher=nothing"], "checkpoint=nothing: no such file"),
        (["teacher=nothing", "norm=bn"], "norm=bn: a teacher is adapted to norm=gn"),
        (["teacherr=x"], "teacherr"),
        (["data=unlabelled"], "data.root=... must be given"),
    ],
)
def test_errors_in_one_line(pretrain, override, message):
    done = pretrain(*override)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in done.stderr


def probe_of(splits):
    torch.manual_seed(0)
    network = build_network(NetworkSpec("tinytl_tiny", "bn", 2))
    return linear_probe(network, splits, evaluation_transform(32, [0.5] * 3, [0.5] * 3))


def test_a_linear_probe_tells_what_can_be_told_and_no_more():
    rng = numpy.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 120, (36, 36, 3), dtype=numpy.uint8)) for _ in range(120)]
    labels = [i % 2 for i in range(120)]
    lit = [
        image.point([min(255, v + 100 * label) for v in range(256)] * 3)
        for image, label in zip(noise, labels, strict=True)
    ]

    def splits(pictures):
        return Splits(Images(pictures[:80], labels[:80]), Images(pictures[80:], labels[80:]), ("0", "1"))

    assert probe_of(splits(lit)) > 0.95
    assert 0.2 < probe_of(splits(noise)) < 0.8


@pytest.mark.parametrize("norm", ["gn", "bn_frozen"])
def test_the_starting_point_in_the_package_knows_more_than_random_weights(norm):
    """By linear probes on the digits, which it never saw."""
    spec = NetworkSpec("proxylessnas_w03", norm, 10, LiteResidualConfig(), checkpoint="embedded")
    transform = evaluation_transform(64, [0.5] * 3, [0.5] * 3)
    whole = digits.load(ROOT)
    train, test = (Images(part.images[::3], part.targets[::3]) for part in (whole.train, whole.test))
    splits = Splits(train, test, whole.class_names)
    trained, at_random = (
        linear_probe(build_network(s), splits, transform)
        for s in (spec, NetworkSpec("proxylessnas_w03", norm, 10, LiteResidualConfig()))
    )
    assert trained > at_random + 0.05

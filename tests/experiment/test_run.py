"""Test the program: every option of every group once, records, resuming, and errors in one line."""

import copy
import json
import math
import re
import time
from typing import Any

import pytest
import torch
from configuration import experiment
from fake_data import FAKE, IMAGES
from processes import ROOT
from pytorch_lightning import Trainer
from safetensors import safe_open
from tiny_network import TINY
from torch.utils.data import DataLoader

import tinytl
from tinytl.errors import UserError
from tinytl.experiment.program import run
from tinytl.experiment.validation import numbers as bounds
from tinytl.memory import predict
from tinytl.methods import METHODS
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.training.classifier import ImageClassifier
from tinytl.weights.build import build_network


def options(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


class Linear(torch.nn.Module):
    """A network small enough to train by hand."""

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(12, 3)
        torch.nn.init.zeros_(self.classifier.weight)

    def forward(self, images):
        return self.classifier(images.flatten(1))


def test_a_stream_is_predicted_before_it_is_trained_on():
    """Against the same done by hand: predict, count, step."""
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (60, 1))
    images = torch.randn(60, 1, 3, 2, 2) + targets.view(60, 1, 1, 1, 1)
    network, right = Linear(), 0
    module = ImageClassifier(
        copy.deepcopy(network), "native", num_classes=3, task="multiclass", lr=0.05, batch_size=1,
        label_smoothing=0.0, stream=True,
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False,
    )  # fmt: skip
    batches: Any = list(zip(images, targets, strict=True))
    trainer.fit(module, DataLoader(batches, batch_size=None))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    for image, target in batches:
        logits = network(image)
        right += int(logits.argmax() == target)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        schedule.step()
    assert 20 < right < 60
    assert trainer.callback_metrics["stream/top1"].item() == pytest.approx(right / 60)


def test_a_stream_is_recorded(ran):
    results = ran("data.stream=true", "method=last", *ONE_BATCH)
    assert (results["config"]["batch_size"], results["config"]["epochs"]) == (1, 1)
    assert results["metrics"]["stream/top1"] in (0, 1)  # of one image
    assert results["curves"]["stream/top1"] == [results["metrics"]["stream/top1"]]


ONE_BATCH = [f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]


MATRIX = [
    pytest.param(method, norm, marks=[] if (i + j) % 3 == 0 else pytest.mark.slow)  # each, and each norm
    for i, method in enumerate(method for method in options("method") if method != "auto")
    for j, norm in enumerate(("bn", "gn", "bn_frozen"))
]


@pytest.mark.parametrize(("method", "norm"), MATRIX)
def test_every_method_with_every_norm(ran, method, norm):
    results = ran(f"method={method}", f"norm={norm}", *FAKE)
    assert results["status"] == "finished"
    assert 0 <= results["metrics"]["test/top1"] <= results["metrics"]["test/top5"] <= 1
    assert 0 < results["params"]["trainable"] <= results["params"]["total"]
    # frozen weights take a byte each, what trains its weight, gradient and two moments
    params = results["params"]
    floor = params["total"] - params["trainable"] + 16 * params["trainable"]
    assert results["memory"]["measured_mb"] > floor / 1e6


@pytest.mark.parametrize(
    ("norm", "batch_size"),
    [("gn", 256), *((norm, batch) for norm in ("bn", "gn", "bn_frozen") for batch in (1, 8))],
)
def test_every_batch_size_with_every_norm(ran, caplog, norm, batch_size):
    results = ran(f"norm={norm}", f"batch_size={batch_size}", "resolution=48", *TINY, *ONE_BATCH)
    assert results["status"] == "finished" and math.isfinite(results["metrics"]["test/loss"])
    assert ("by the statistics of one image" in caplog.text) == (norm == "bn" and batch_size == 1)


MODELS = [name for name in options("model") if name != "tinytl_specialized"]  # of other data sets, downloaded


# A network of each architecture runs; the others differ from it in their layers' sizes.
ALIKE = {"proxylessnas_cpu", "proxylessnas_gpu", "mobilenetv2_140", "efficientnet_lite0", "resnet50"}


@pytest.mark.parametrize("model", sorted(ALIKE))
def test_models_alike(model):
    step = experiment(f"model={model}", "method=bias", *IMAGES).step
    assert step.spec.model == model and sum(p.numel() for p in build_on_meta(step.spec).parameters()) > 1e6


RUN = [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in (*MODELS, "resnet18")]


@pytest.mark.parametrize("model", RUN)
def test_every_model(ran, model):
    method = "bias" if model in ("inception_v3", "resnet50") else "tinytl"  # resnet18 stands for resnet50
    resolution = 96 if model == "inception_v3" else 64
    small = ["batch_size=2", f"resolution={resolution}", *ONE_BATCH]
    results = ran(f"model={model}", f"method={method}", *IMAGES, *small)
    assert results["status"] == "finished"


def test_backbones_with_norms_of_their_own(ran):
    assert ran("model=convnext_atto", "norm=native", "method=bias", *IMAGES)["status"] == "finished"
    vit = ["model=vit_tiny_patch16_224", "norm=native", "method=bias", *IMAGES, "resolution=224"]
    assert ran(*vit, *ONE_BATCH, "batch_size=1")["status"] == "finished"


@pytest.mark.parametrize("data", options("data"))
def test_every_data_set_with_its_recipe(ran, data):
    """On noise, in the shape of the set: the recipe, not the files."""
    kind = "multilabel" if data == "celeba" else "multiclass"
    fake = [f"data.loader=fake_data.load_{kind}", "data.workers=0", "resolution=32", *TINY]
    root = ["data.root=anywhere"] if data in ("folder", "unlabelled") else []
    root += ["data.csv=anywhere"] if data == "table" else []
    results = ran(f"data={data}", *fake, *root)
    accuracy = "test/mean_accuracy" if data == "celeba" else "test/top1"
    assert 0 <= results["metrics"][accuracy] <= 1
    assert results["config"]["lr"] == results["config"]["data"]["lr"]


ENGINES = [
    "engine=stock",
    "engine.micro_batch=2",
    "engine.recompute_above_px=null",
    "engine.keep_projection=false",
    "engine.slice_kb=null",
    "engine.compile=off",
    "trainer.gradient_clip_val=100.0",
]


@pytest.fixture(scope="module")
def plain():
    """The metrics of a run under the lean engine's defaults."""
    return {}


@pytest.mark.parametrize("override", ENGINES)
def test_every_engine_trains_the_same(ran, plain, override):
    small = ["dropout=0.0", "data.val_fraction=0.2", *FAKE]
    if not plain:
        plain.update(ran(*small)["metrics"])
    metrics = ran(*small, override)["metrics"]
    assert metrics["test/loss"] == pytest.approx(plain["test/loss"], rel=1e-3)
    assert metrics["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.optimizer_bits=8"],
        ["engine.step_in_backward=true"],
        ["batch_size=1", "engine.optimizer_bits=8", "engine.step_in_backward=true"],
        ["trainer.precision=bf16-mixed", "resolution=96"],  # on 1x1 maps oneDNN's gradients are not finite
    ],
)
def test_engine_options_that_change_the_rounding(ran, overrides):
    if "engine.optimizer_bits=8" in overrides:
        pytest.importorskip("bitsandbytes")
    results = ran(*FAKE, *overrides)
    assert results["status"] == "finished" and math.isfinite(results["metrics"]["test/loss"])


def test_the_lean_engine_takes_less(ran):
    stock, lean = (ran(f"engine={engine}", *FAKE)["memory"] for engine in ("stock", "lean"))
    assert lean["measured_mb"] < stock["measured_mb"]
    assert stock["lean_mb"] == lean["lean_mb"] == lean["predicted_mb"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_memory_of_other_precisions(ran, precision):
    """It is recorded under the lean engine, too, which computes 16 bits without native blocks."""
    arguments = [f"trainer.precision={precision}", "resolution=96", *FAKE]
    stock, lean = (ran(f"engine={engine}", *arguments)["memory"] for engine in ("stock", "lean"))
    for memory in (stock, lean):
        assert memory["measured_mb"] <= memory["predicted_mb"]
    assert stock["lean_mb"] == lean["lean_mb"] == lean["predicted_mb"]


def test_a_run_is_not_lost_where_its_lean_memory_cannot_be_predicted(ran, monkeypatch, caplog):
    def fail(_):
        raise RuntimeError("no kernel for this layer")

    predict.lean_mb.cache_clear()
    stock = predict.predicted_bytes
    monkeypatch.setattr(
        predict, "predicted_bytes", lambda step: (stock if step.engine == "stock" else fail)(step)
    )
    results = ran("engine=stock", *FAKE)
    predict.lean_mb.cache_clear()
    assert results["status"] == "finished" and results["memory"]["lean_mb"] is None
    assert "no kernel for this layer" in caplog.text


def test_a_memory_budget_is_kept_and_recorded(ran):
    results = ran(*FAKE, "epochs=2", "resolution=auto", "memory_budget_mb=8")
    memory, chosen = results["memory"], results["config"]
    assert memory["budget_mb"] == 8 and chosen["resolution"] in range(96, 321, 32)
    assert memory["measured_mb"] <= memory["predicted_mb"] <= 8
    assert memory["predicted_mb"] <= 1.05 * memory["measured_mb"]
    assert chosen["engine"]["micro_batch"] < 8 and "-rauto-" not in chosen["name"]


def test_a_method_for_the_budget(ran):
    """It trains with the learning rate of what was chosen."""
    rates = ["data.lr=2e-3", "data.lr_full=1e-3"]
    results = ran(*FAKE, *rates, "method=auto", "resolution=64", "memory_budget_mb=2", "epochs=2")
    config, memory = results["config"], results["memory"]
    assert config["method"]["name"] in METHODS and config["resolution"] == 64
    assert config["lr"] == (1e-3 if config["method"]["name"] == "full" else 2e-3)
    assert memory["measured_mb"] <= memory["predicted_mb"] <= 2
    assert config["name"] == "run"


def test_full_fine_tuning_has_its_own_learning_rate(ran):
    def rate(*settings):
        return ran(*FAKE, "data.lr=2e-3", "data.lr_full=1e-3", *settings)["config"]["lr"]

    assert (rate("method=last"), rate("method=full")) == (2e-3, 1e-3)
    assert (rate("method=full", "lr=3e-3"), rate("method=full", "batch_size=1")) == (3e-3, 1e-3)
    of_one = ["batch_size=1", "data.lr_batch1=5e-4"]
    assert (rate("method=last", *of_one), rate("method=full", *of_one)) == (5e-4, 2.5e-4)


def test_small_images_are_not_enlarged_for_nothing(configured, capsys):
    """Everything fits, but 3.5 times CIFAR's 32 px is 112, and the next of the resolutions 128."""
    budget = ["method=auto", "resolution=auto", "memory_budget_mb=200"]
    run(configured(*budget, "data=cifar10", "dry_run=true", "time_steps=0", *TINY))
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (plan["method"], plan["blocks"], plan["resolution"]) == ("full", None, 128)


def test_random_weights_are_said_to_be_random(ran, caplog):
    results = ran(*FAKE)
    assert "tinytl_tiny starts from random weights" in caplog.text
    assert results["params"]["lite_residual_pretrained"] is False


def test_random_lite_residuals_take_statistics_from_the_training_images(ran, tmp_path):
    """Under bn_frozen nothing else would give them any; those of the checkpoint stay."""
    ran(*IMAGES, "norm=bn_frozen", "method=bias", "lr=1e-12", "lite_residual.pretrained=false")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    variances = {name: v for name, v in saved.items() if name.endswith("running_var") and ".lite_" in name}
    assert variances and not any(torch.equal(v, torch.ones_like(v)) for v in variances.values())


def test_a_budget_of_what_is_free(ran):
    assert ran(*FAKE, "memory_budget_mb=auto")["memory"]["budget_mb"] > 100


def test_learning_rate_of_batch_size_1(ran):
    recipe = ["data=flowers102", "data.loader=fake_data.load_multiclass", "data.workers=0", "resolution=32"]
    recipe += TINY
    assert ran(*recipe, "batch_size=1")["config"]["lr"] == 3e-4  # the paper's
    assert ran(*recipe, "batch_size=1", "lr=0.5e-4")["config"]["lr"] == 0.5e-4


@pytest.mark.parametrize("engine", ["stock", "lean"])
def test_the_classifier_has_its_own_learning_rate(ran, tmp_path, engine):
    def trained(*overrides):
        ran(f"engine={engine}", *overrides, *IMAGES)
        saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        return saved["state_dict"]

    start, moved = trained("lr=1e-12"), trained("lr=1e-2", "classifier_lr=1e-12")
    for name, tensor in start.items():
        assert torch.allclose(tensor, moved[name], atol=1e-6) == ("classifier" in name), name


def test_overfit_learns_two_batches(ran):
    unchanged = ["data.crop_scale_min=1", "data.flip=false"]
    results = ran("debug=overfit", "method=full", "norm=bn", "lr=1e-2", *unchanged, *FAKE)
    loss = results["curves"]["train/loss"]
    assert len(loss) == 40 and loss[-1] < 0.1 * loss[0]


def test_records(ran, tmp_path):
    """results.json is complete, and W&B offline mirrors it."""
    results = ran("wandb.mode=offline", *FAKE, "data.val_fraction=0.2")
    keys = {"status", "sweep", "fingerprint", "config", "provenance", "metrics", "curves", "memory", "params"}
    assert set(results) == {*keys, "time", "asked", "data", "classes", "stopped_early_after_epoch"}
    assert results["curves"]["epoch"] == [1]
    assert results["memory"]["activation_bits"] == {"ReLU6": 1}  # the paper's Table 1; its ReLUs are native
    assert {"val/top1", "val/loss", "test/top1", "test/top5", "test/loss"} <= set(results["metrics"])
    assert results["metrics"]["test/weights"] == "best"
    memory = results["memory"]
    assert memory["cuda_mb"] is None or memory["cuda_mb"] > 0
    assert sum(memory["measured_split_mb"].values()) == pytest.approx(memory["measured_mb"])
    assert sum(memory["kept_by_operator_mb"].values()) == pytest.approx(memory["kept_for_backward_mb"])
    count = memory["params_mb"] + 8 * memory["activation_mb_per_image"]
    assert memory["paper_mb"] == pytest.approx(count)
    assert memory["process_mb"] > 100
    assert results["time"]["seconds"] > 0 and results["time"]["images_per_second"] > 0
    assert results["provenance"]["packages"]["torch"] == torch.__version__
    assert len(results["config"]["data"]) > 5 and results["config"]["seed"] == 0
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(60):  # W&B's own process writes it
        if b"memory/measured_mb" in log.read_bytes():
            break
        time.sleep(0.5)
    assert b"memory/measured_mb" in log.read_bytes() and b"test/top1" in log.read_bytes()


@pytest.mark.parametrize("engine", ["stock", "lean"])
@pytest.mark.parametrize("overrides", [["norm=bn_frozen", "checkpoint=null"], ["norm=bn", "method=last"]])
def test_what_is_frozen_behaves_so_while_training(ran, monkeypatch, engine, overrides):
    """Stored statistics stay as they are, and dropout works, from the first batch to the last."""
    step, modes, statistics = ImageClassifier.training_step, [], []

    def watched(self, *batch):
        norms = [m for m in self.network.modules() if "running_mean" in dict(m.named_buffers(recurse=False))]
        modes.append((self.network.training, any(norm.training for norm in norms)))
        statistics.append(torch.cat([norm.running_mean for norm in norms]))
        return step(self, *batch)

    monkeypatch.setattr(ImageClassifier, "training_step", watched)
    ran(f"engine={engine}", *overrides, "epochs=2", "data.val_fraction=0.2", *FAKE)
    assert len(modes) >= 2 and set(modes) == {(True, False)}
    assert torch.equal(statistics[0], statistics[-1])


@pytest.mark.parametrize("norm", ["gn", "bn_frozen", "bn"])
def test_both_engines_train_alike(ran, norm):
    """The whole program, not a step: modes, data, dropout, schedule."""
    common = [f"norm={norm}", "checkpoint=null", "epochs=2", "lr=1e-4", "quantize=off", *FAKE]
    stock, lean = (ran(f"engine={engine}", *common) for engine in ("stock", "lean"))
    assert lean["curves"]["train/loss"] == pytest.approx(stock["curves"]["train/loss"], rel=1e-2)
    assert lean["metrics"]["test/loss"] == pytest.approx(stock["metrics"]["test/loss"], rel=1e-2)


def test_checkpoints_hold_the_trainable_part(ran, tmp_path):
    results = ran("method=bias", "data.val_fraction=0.2", *FAKE)
    for name in ("best.ckpt", "last.ckpt"):
        saved = torch.load(tmp_path / "run" / "checkpoints" / name, weights_only=True)
        assert sum(t.numel() for t in saved["state_dict"].values()) == results["params"]["trainable"]
    again = ran("method=bias", f"checkpoint={tmp_path}/run/checkpoints/best.ckpt", "lr=1e-12", *FAKE)
    assert again["metrics"]["test/loss"] == pytest.approx(results["metrics"]["test/loss"], rel=1e-4)


def test_top5_is_not_taken_for_top1():
    """Where a first batch has all images right, both have counted the same; the next batches differ."""
    module = ImageClassifier(
        Linear(), "native", num_classes=10, task="multiclass", lr=1.0, batch_size=2, label_smoothing=0.0
    )
    targets = torch.arange(10)
    right = torch.eye(10)
    second = right + 2 * torch.eye(10).roll(1, dims=1)  # the right class comes second
    module.val_metrics.update(right[:2], targets[:2])
    module.val_metrics.update(second, targets)
    figures = {name: value.item() for name, value in module.val_metrics.compute().items()}
    assert (figures["val/top1"], figures["val/top5"]) == (pytest.approx(2 / 12), 1)


def test_the_validation_set_of_the_data_is_used(ran, monkeypatch, tmp_path):
    """Where there is one none is held out: all 16 images train."""
    results = ran(*FAKE, "data.loader=fake_data.load_validated", "data.val_fraction=0.2")
    assert results["data"]["images"] == {"train": 16, "test": 6, "val": 5}
    assert "val/top1" in results["metrics"] and results["metrics"]["test/weights"] == "best"


def test_mean_and_deviation_are_knobs_and_come_back_with_the_weights(ran, tmp_path):
    pixels = ["data.mean=[0.1,0.2,0.3]", "data.std=[1,1,0.5]", "lr=1e-3"]
    first = ran(*FAKE, *pixels)
    weights = tmp_path / "adapter"
    (tmp_path / "run" / "adapter").rename(weights)
    record = json.loads((weights / "adapter_config.json").read_text())
    with safe_open(weights / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["tinytl"]) == record
    assert (record["task"], record["metrics"]) == ("multiclass", first["metrics"])
    lite = LiteResidualConfig(**record["spec"]["lite_residual"])
    network = tinytl.load(build_network(NetworkSpec(**{**record["spec"], "lite_residual": lite})), weights)
    assert tinytl.summary(network).model == record["spec"]["model"] and network.training
    assert (record["mean"], record["std"]) == ([0.1, 0.2, 0.3], [1, 1, 0.5])
    assert record["resolution"] == 32 and record["class_names"] == ["a", "b", "c"]
    again = ran(*FAKE, f"checkpoint={weights}", "lr=1e-12")
    assert again["metrics"]["test/loss"] == pytest.approx(first["metrics"]["test/loss"], rel=1e-4)


def test_a_test_on_a_part_is_marked(ran):
    assert ran(*FAKE, "batch_size=2", "trainer.limit_test_batches=2")["metrics"]["test/part"] == 2 / 3
    assert "test/part" not in ran(*FAKE, "trainer.limit_test_batches=1.0")["metrics"]


def test_same_seed_same_figures(ran):
    first, second = (ran(*FAKE)["metrics"] for _ in range(2))
    other = ran(*FAKE, "seed=1")["metrics"]
    assert first == second != other


def test_a_loss_that_is_not_finite_stops_the_run(configured, tmp_path, monkeypatch):
    monkeypatch.setitem(bounds.NUMBERS, "lr", bounds.Range(0, 1e31, "any"))
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step \d+"):
        run(configured("method=full", "norm=bn", "lr=1e30", "epochs=5", *FAKE))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "failed" and "the loss became" in results["reason"]


@pytest.mark.parametrize(("method", "mb"), [("tinytl", 37), ("full", 391)])
def test_dry_run_prints_table_2(configured, capsys, tmp_path, method, mb):
    """Its other rows are in tests/paper/test_count.py."""
    overrides = ["model=proxylessnas_mobile", "data=flowers102", "dry_run=true", "time_steps=0"]
    run(configured(f"method={method}", *overrides))
    captured = capsys.readouterr()
    plan = json.loads(captured.out.splitlines()[-1])
    assert round(plan["paper_mb"]) == mb
    assert plan["paper_mb"] == pytest.approx(plan["params_mb"] + 8 * plan["activation_mb_per_image"])
    assert (plan["model"], plan["method"], plan["norm"]) == ("proxylessnas_mobile", method, "gn")
    assert (plan["resolution"], plan["batch_size"], plan["num_classes"]) == (224, 8, 102)
    assert not (tmp_path / "run").exists()


def test_the_command(program, tmp_path):
    """The README's command in fast mode, and a mistake: one line, exit code 1, nothing left behind."""
    done = program("method=tinytl", "norm=gn", "debug=fast", "name=command")
    assert done.returncode == 0, done.stderr
    assert "random" not in done.stderr and ", by the best weights" in done.stderr
    results = json.loads((tmp_path / "outputs" / "command" / "results.json").read_text())
    assert results["status"] == "finished" and results["params"]["lite_residual_pretrained"] is True
    for override in ("nrom=gn", "data=folder"):
        mistake = program("method=tinytl", override, "name=mistake")
        assert mistake.returncode == 1
        assert len(mistake.stderr.strip().splitlines()) == 1 and mistake.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["command"]


def test_corrupt_images_end_the_run_with_their_names(program, tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "images" / name / f"{index}.png").write_bytes(b"not an image")
    done = program(
        "data=folder", f"data.root={tmp_path}/images", "debug=fast", "name=corrupt", "resolution=32"
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.match(r"error: 20 of 20 images cannot be read: .*/(ants|bees)/\d\.png \(its content", line)
    results = json.loads((tmp_path / "outputs" / "corrupt" / "results.json").read_text())
    assert results["status"] == "failed" and "cannot be read" in results["reason"]

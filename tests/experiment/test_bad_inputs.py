"""Bad input ends in one clear line that names it, before any work, and nothing is written."""

import os
import subprocess
import sys
from dataclasses import replace

import fake_data
import numpy
import processes
import pytest
import torch
from configuration import composed
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from processes import ROOT
from pytorch_lightning import seed_everything

import bench
import dashboard
import report
from tinytl.data.datamodule import Drift, EpochShuffle, ImageDataModule
from tinytl.data.images import Images, Transformed
from tinytl.data.transforms import train_transform
from tinytl.errors import UserError
from tinytl.experiment.program import run
from tinytl.experiment.sweep.grids import points
from tinytl.experiment.terminal.error_exit import one_line_errors
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.terminal.overrides import plain_value, prepared
from tinytl.experiment.terminal.suggestions import did_you_mean
from tinytl.experiment.validation import devices, folder_names
from tinytl.experiment.validation.inputs import validate_data
from tinytl.experiment.validation.numbers import CHANNELS, SHARE, check_list
from tinytl.experiment.validation.validate import validate
from tinytl.memory import process


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs what cannot run on a machine of two cores and no GPU; returns the line that says why."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(process, "total_bytes", lambda: 8 * 10**9)

    def line_of(overrides):
        arguments = [overrides] if isinstance(overrides, str) else overrides
        base = [f"output_dir={tmp_path / 'outputs'}", "name=run", "wandb=disabled"]
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as error:
            run(composed(*base, *arguments))
        line = one_line(error.value)
        assert "\n" not in line and len(line) < 400
        return line

    return line_of


BAD = [
    # seeds
    ("seed=-1", "seed=-1: must be at least 0"),
    ("seed=4294967296", "seed=4294967296: must be at most 4294967295"),
    ("seed=12345678901234567890123", "must be at most 4294967295"),
    ("seed=1e3", "seed=1e3: Value '1000.0' of type 'float' could not be converted to Integer"),
    ("seed=zero", "seed=zero: Value 'zero'"),
    ("seed=null", "seed=null: field 'seed' is not Optional"),
    # sizes
    ("batch_size=0", "batch_size=0: must be at least 1"),
    ("batch_size=-8", "batch_size=-8: must be at least 1"),
    ("batch_size=100000", "batch_size=100000: must be at most 65536 (images a step"),
    ("batch_size=3.5", "batch_size=3.5: Value '3.5'"),
    ("batch_size=true", "batch_size=true: Value 'True' of type 'bool'"),
    ("batch_size=many", "batch_size=many: Value 'many'"),
    ("batch_size=[1,2]", "batch_size=[1,2]: Value '[1, 2]' of type 'list'"),
    ("batch_size={a:1}", "of type 'dict'"),
    ("batch_size=null", "batch_size=null: field 'batch_size' is not Optional"),
    ("batch_size=60000", "batch_size=60000 resolution=64 engine.slice_kb=1000: a map would be computed in"),
    (["batch_size=60000", "resolution=224", "engine=stock"], "the images of a step alone take 36 GB"),
    ("resolution=8", "resolution=8: must be at least 32"),
    ("resolution=100000", "resolution=100000: must be at most 4096 (pixels a side"),
    ("resolution=64.5", "resolution=64.5: must be a whole number"),
    ("resolution=-64", "resolution=-64: must be at least 32"),
    ("resolution=nan", "resolution=nan: must be a whole number"),
    ("resolution=true", "resolution=True: must be a number or auto"),
    ("resolution=[64]", "resolution=[64]: must be a number or auto"),
    ("resolution=small", "resolution=small: must be a number or auto"),
    ("resolution=null", "resolution=None: must be a number or auto"),
    ("resolution=auto", "resolution=auto needs a memory_budget_mb"),
    ("epochs=0", "epochs=0: must be at least 1"),
    ("epochs=-3", "epochs=-3: must be at least 1"),
    ("epochs=1000000000", "epochs=1000000000: must be at most 100000"),
    ("epochs=1.5", "epochs=1.5: Value '1.5'"),
    ("patience=0", "patience=0: must be at least 1"),
    ("patience=2.5", "patience=2.5: Value '2.5'"),
    ("blocks=-1", "blocks=-1: must be at least 0"),
    ("blocks=10000000", "blocks=10000000: must be at most 1000"),
    ("data.num_classes=0", "data.num_classes=0: must be at least 1"),
    ("data.num_classes=100000000", "data.num_classes=100000000: must be at most 100000 (the classifier"),
    ("data.workers=-1", "data.workers=-1: must be at least 0"),
    ("data.workers=100000", "data.workers=100000: must be at most"),
    ("data.image_px=0", "data.image_px=0: must be at least 1"),
    ("engine.micro_batch=0", "engine.micro_batch=0: must be at least 1"),
    ("engine.micro_batch=3", "engine.micro_batch=3 does not divide batch_size=8"),
    ("engine.slice_kb=0", "engine.slice_kb=0.0: must be at least 1"),
    ("engine.slice_kb=1e-9", "engine.slice_kb=1e-09: must be at least 1"),
    ("engine.slice_kb=-1", "engine.slice_kb=-1.0: must be at least 1"),
    ("engine.slice_kb=inf", "engine.slice_kb=inf: must be a finite number"),
    (["engine.slice_kb=1", "resolution=224"], "engine.slice_kb=1: a map would be computed in"),
    ("engine.recompute_above_px=-1", "engine.recompute_above_px=-1: must be at least 0"),
    ("engine.optimizer_bits=4", "engine.optimizer_bits=4: must be one of 8, 32"),
    ("memory_budget_mb=plenty", "memory_budget_mb=plenty: must be a number or auto"),
    ("memory_budget_mb=-8", "memory_budget_mb=-8: must be above 0"),
    ("memory_budget_mb=0", "memory_budget_mb=0: must be above 0"),
    ("memory_budget_mb=nan", "memory_budget_mb=nan: must be a finite number"),
    ("memory_budget_mb=inf", "memory_budget_mb=inf: must be a finite number"),
    ("memory_budget_mb=true", "memory_budget_mb=True: must be a number or auto"),
    ("lite_residual.kernel_size=4", "lite_residual.kernel_size=4: must be an odd number"),
    ("lite_residual.kernel_size=1000001", "lite_residual.kernel_size=1000001: must be at most 31"),
    ("lite_residual.groups=0", "lite_residual.groups=0: must be at least 1"),
    ("lite_residual.expansion=0", "lite_residual.expansion=0.0: must be above 0"),
    ("lite_residual.expansion=1e9", "must be at most 64"),
    ("lite_residual.expansion=nan", "lite_residual.expansion=nan: must be a finite number"),
    ("lite_residual.pooling=0", "lite_residual.pooling=0: must be at least 1"),
    ("lite_residual.pooling=1000", "lite_residual.pooling=1000: must be at most 64"),
    ("lite_residual.upsampling=cubic", "lite_residual.upsampling=cubic: must be one of bilinear, nearest"),
    ("lite_residual.enabled=perhaps", "lite_residual.enabled=perhaps"),
    ("lite_residual=null", "lite_residual=null: field 'lite_residual' is not Optional"),
    # rates and shares
    ("lr=-1", "lr=-1.0: must be above 0"),
    ("lr=0", "lr=0.0: must be above 0"),
    ("lr=nan", "lr=nan: must be a finite number"),
    ("lr=inf", "lr=inf: must be a finite number"),
    ("lr=-inf", "lr=-inf: must be a finite number"),
    ("lr=1e400", "lr=inf: must be a finite number"),
    ("lr=1e9", "lr=1000000000.0: must be at most 1000"),
    ("lr=true", "lr=true: Value 'True'"),
    ("lr=", "lr=: Value ''"),
    ("lr=0,001", "lr=0,001: several values need -m"),
    ("lr=[1e-3]", "lr=[1e-3]: Value '[0.001]' of type 'list'"),
    ("data.lr=fast", "data.lr=fast: Value 'fast'"),
    ("data.lr_full=nan", "data.lr_full=nan: must be a finite number"),
    ("classifier_lr=-1", "classifier_lr=-1.0: must be above 0"),
    ("weight_decay=-0.1", "weight_decay=-0.1: must be at least 0"),
    ("weight_decay=inf", "weight_decay=inf: must be a finite number"),
    ("dropout=1", "dropout=1.0: must be below 1"),
    ("dropout=nan", "dropout=nan: must be a finite number"),
    ("warmup=1.5", "warmup=1.5: must be below 1"),
    ("label_smoothing=-0.1", "label_smoothing=-0.1: must be at least 0"),
    ("data.val_fraction=1", "data.val_fraction=1.0: must be below 1"),
    ("data.val_fraction=nan", "data.val_fraction=nan: must be a finite number"),
    ("data.crop_scale_min=0", "data.crop_scale_min=0.0: must be above 0"),
    ("data.crop_scale_min=1.5", "data.crop_scale_min=1.5: must be at most 1"),
    ("data.color_jitter=[9,9,9,9]", "brightness must be at most 2"),
    ("data.color_jitter=[0.4,0.4,0.4,0.9]", "hue must be at most 0.5"),
    ("data.color_jitter=[0.4,-1,0.4,0.1]", "contrast must be at least 0"),
    ("data.color_jitter=[nan,0,0,0]", "brightness must be a finite number"),
    ("data.color_jitter=[0.4]", "data.color_jitter=[0.4]: must be four numbers: brightness, contrast"),
    ("data.color_jitter=[]", "must be four numbers"),
    ("data.color_jitter=0.4", "data.color_jitter=0.4"),
    ("data.color_jitter=[a,b,c,d]", "data.color_jitter=[a,b,c,d]: Value 'a'"),
    # the trainer
    ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0: must be a number of batches from 1"),
    ("trainer.limit_train_batches=-1", "trainer.limit_train_batches=-1: must be"),
    ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches=1.5: must be"),
    ("trainer.limit_train_batches=nan", "trainer.limit_train_batches=nan: must be"),
    ("trainer.limit_test_batches=0", "trainer.limit_test_batches=0: must be a number of batches from 1"),
    ("trainer.limit_test_batches=0.0", "trainer.limit_test_batches=0.0: must be"),
    ("trainer.limit_val_batches=-0.5", "trainer.limit_val_batches=-0.5: must be"),
    ("trainer.limit_val_batches=true", "trainer.limit_val_batches=true: Value 'True'"),
    ("trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: must be a finite number"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1.0: must be at least 0"),
    ("trainer.devices=0", "trainer.devices=0: must be at least 1"),
    ("trainer.devices=-1", "trainer.devices=-1: must be at least 1"),
    ("trainer.devices=99", "trainer.devices=99: must be at most 2, the cores here"),
    ("trainer.devices=[0,1]", "trainer.devices=[0,1]: Value"),
    ("trainer.accelerator=gpu", "trainer.accelerator=gpu: PyTorch finds none here"),
    ("trainer.accelerator=mps", "trainer.accelerator=mps: PyTorch finds none here"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu: must be one of auto, cpu, gpu"),
    ("trainer.accelerator=cup", "did you mean cpu"),
    ("trainer.precision=7", "trainer.precision=7: must be one of 32-true"),
    ("trainer.precision=16-mixed", "trainer.precision=16-mixed: a CPU computes no 16-bit floats; bf16-mixed"),
    ("trainer.precision=bf16-mixd", "did you mean bf16-mixed"),
    # names of options
    ("method=tinytle", "Could not find 'method/tinytle'. Available options in 'method': auto, bias, full"),
    ("method=tinytle", "did you mean tinytl"),
    ("norm=xn", "Could not find 'norm/xn'"),
    ("model=resnet51", "model=resnet51: timm knows no such model; did you mean"),
    ("data=cifar11", "did you mean cifar10"),
    ("wandb=ofline", "did you mean offline"),
    ("+sweeps=tabel2", "did you mean table2"),
    ("hydra/launcher=jobli", "did you mean joblib"),
    ("method=null", "method=null: method= takes the name of an option"),
    ("data=3", "data=3: data= takes the name of an option"),
    ("~method", "method.name=... must be given"),
    ("method.name=tynitl", "method.name=tynitl: must be one of last, bias"),
    ("quantize=int4", "quantize=int4: must be one of int8, kmeans, off; did you mean int8"),
    ("classifier=zeros", "classifier=zeros: must be one of random, class_means"),
    ("test_weights=first", "test_weights=first: must be one of auto, best, last"),
    ("data.task=single", "data.task=single: must be one of multiclass, multilabel, auto"),
    ("class_weights=equal", "class_weights=equal: must be one of null, balanced"),
    ("engine.compile=maybe", "engine.compile=maybe: must be one of auto, on, off"),
    ("wandb.mode=on", "wandb.mode=on: must be one of offline, online, disabled"),
    ("wandb.project=a/b", "wandb.project=a/b: W&B allows no /"),
    ("data.loader=nope.nope", "data.loader=nope.nope: no such function"),
    ("data.loader=tinytl.data.digits.SPLIT_SEED", "digits.SPLIT_SEED: no such function"),
    ("data.loader=digits", "data.loader=digits: no such function"),
    # keys
    ("batchsize=8", "batchsize: no such setting; did you mean batch_size?"),
    ("+foo=1", "foo: no such setting"),
    ("++foo=1", "foo: no such setting"),
    ("+metod=bias", "metod: no such setting; did you mean method?"),
    ("+bach_size=4", "bach_size: no such setting; did you mean batch_size?"),
    ("+data.val_fractoin=0.1", "data.val_fractoin: no such setting; did you mean data.val_fraction?"),
    ("+val_fraction=0.1", "val_fraction: no such setting; did you mean data.val_fraction?"),
    ("trainer.precison=32", "trainer.precison: no such setting; did you mean trainer.precision?"),
    ("+lite_residual.kernel=3", "lite_residual.kernel: no such setting"),
    ("+sweep_s=table2", "sweep_s: no such setting; did you mean sweep?"),
    ("sweeps=table2", "sweeps: no such setting; did you mean -m +sweeps=NAME?"),
    ("lr.x=1", "lr.x=1: Value"),
    ("~lr", "~lr: a setting cannot be taken away; lr=VALUE changes it"),
    ("~data.lr", "~data.lr: a setting cannot be taken away"),
    ("~foo", "foo: no such setting"),
    # what the grammar does not allow
    ("seed", "seed: no value; seed=VALUE sets one"),
    ("=5", "=5: not a setting; KEY=VALUE sets one"),
    ("näme=x", "näme=x: not a setting"),
    ("seed==3", "seed==3: quote the value: 'seed=\"=3\"'"),
    ("lr=(1", "lr=(1: quote the value"),
    ("data.root=/ä,/ö", "'data.root=\"/ä\",\"/ö\"' or, as one value, 'data.root=\"/ä,/ö\"'"),
    ("method=a(b", "method=a(b: quote the value: 'method=\"a(b\"'"),
    ("output_dir=${nope}", "Interpolation key 'nope' not found. (key output_dir)"),
    ("output_dir=${oc.env:NO_SUCH_VARIABLE}", "'NO_SUCH_VARIABLE' not found"),
    ("output_dir=${nope:1}", "Unsupported interpolation type nope"),
    ("lr=${lr}", "lr"),
    ("seed=range(0,0)", "requires --multirun"),
    # texts
    ("name=a/b", "name=a/b: must be a plain folder name"),
    ("name=", "name=: must not be empty"),
    ("name=..", "name=..: must be a plain folder name; it is empty"),
    ("name=-rf", "its leading dash"),
    ("name=x.", "name=x.: must be a plain folder name; it begins or ends"),
    ("name='x '", "it begins or ends with a space"),
    ("name=NUL", "name=NUL: must be a plain folder name; Windows reserves it"),
    ("name=com1.txt", "Windows reserves it"),
    (f"name={'x' * 300}", "is too long"),
    (f"name={'ä' * 128}", "is too long"),
    ("name='a\nb'", "name=a?b: holds a control character"),
    ("name='a\x1bb'", "name=a?b: holds a control character"),
    ("sweep=a/b", "sweep=a/b: must be a plain folder name"),
    ("output_dir=", "output_dir=: must not be empty"),
    ("output_dir=null", "output_dir=null: field 'output_dir' is not Optional"),
    ("checkpoint=", "checkpoint=: must not be empty"),
    (f"checkpoint={'w' * 300}", "is too long"),
    ("data.root=\udcff", "data.root=?: is not UTF-8"),
    ("wandb.tags=['']", "wandb.tags=: must not be empty"),
    ("data.csv=", "data.csv=: must not be empty"),
    ("resume=maybe", "resume=maybe: Value 'maybe' is not a valid bool"),
    # combinations
    ("method=auto", "method=auto needs a memory_budget_mb to choose by"),
    ("data=folder", "data.root=... must be given"),
    ("engine.channels_last=true", "engine=lean has a memory layout of its own"),
    ("lite_residual.enabled=false", "method=tinytl has nothing to train with lite_residual.enabled=false"),
    (["norm=bn", "engine.micro_batch=1"], "norm=bn takes its statistics from the whole batch"),
    (["engine.step_in_backward=true", "engine.micro_batch=1"], "engine.step_in_backward steps on"),
    (["engine.step_in_backward=true", "trainer.gradient_clip_val=1.0"], "leaves no gradients to clip"),
    (["engine=stock", "engine.optimizer_bits=8"], "engine=stock: optimizer_bits=8"),
    (["data.stream=true", "batch_size=8"], "data.stream=true sees each image once, one at a time"),
    (["data.stream=true", "trainer.devices=2", "dry_run=true"], "data.stream=true sees one image at a time"),
    (["classifier=class_means", "data.stream=true"], "classifier=class_means: images must have one class"),
    ("data.drift=true", "data.drift=true is the order of a stream"),
    (["test_weights=best", "data.val_fraction=0"], "test_weights=best needs a validation set"),
    (["test_weights=best", "trainer.limit_val_batches=0"], "test_weights=best needs validation"),
    (["patience=3", "data.val_fraction=0"], "patience=3 needs a validation set: data.val_fraction above 0"),
    (["patience=3", "trainer.limit_val_batches=0"], "patience=3 needs validation"),
    (["class_weights=balanced", "data.stream=true"], "class_weights=balanced: how frequent classes are"),
    ("data=table", "data.csv=... must be given"),
    ("data.csv=images.csv", "data.csv=images.csv: data=digits reads no table; data=table does"),
    (
        ["data=table", "dry_run=true", "data.num_classes=3"],
        "data=table: without the data, data.task=multiclass or data.task=multilabel must say",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda value: ascii(str(value))[:40])
def test_bad_input_is_refused_in_one_line(refused, tmp_path, overrides, message):
    assert message in refused(overrides)
    assert not (tmp_path / "outputs").exists()


WITH_DATA = [  # found when the data or the network's shapes are at hand
    ("data.num_classes=3", "data.num_classes=3: the data has 10 classes"),
    ("data.task=multilabel", "data.task=multilabel: the images have one class each"),
    ("blocks=50", "blocks=50: the network has 20"),
    ("lite_residual.groups=3", "lite_residual.groups=3 does not divide"),
    ("checkpoint=nowhere.pth", "checkpoint=nowhere.pth: no such file"),
    ("model=inception_v3", "model=inception_v3 has no inverted bottlenecks"),
    (["model=inception_v3", "method=last", "norm=bn", "resolution=32"], "resolution=96 works"),
    (["model=vit_tiny_patch16_224", "method=last", "norm=native"], "resolution=224 works"),
    (["norm=bn", "batch_size=1", "resolution=32"], "takes no images of this size"),
    ("data.loader=tinytl.data.splits.held_out", "held_out: must take (root)"),
    ("model.name=resnet51", "model=resnet51: timm knows no such model"),
]


@pytest.mark.parametrize(("overrides", "message"), WITH_DATA, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_data_or_network_is_refused(refused, overrides, message):
    assert message in refused(overrides)


def test_a_loader_that_returns_something_else(refused, monkeypatch):
    monkeypatch.setattr(fake_data, "load_list", lambda root: [1, 2], raising=False)
    line = refused("data.loader=fake_data.load_list")
    assert line == "data.loader=fake_data.load_list: returned list, not tinytl.data.splits.Splits"


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("mean", [0.5, 0.5], "data.mean=[0.5, 0.5]: must be three numbers"),
        ("mean", [123.7, 0.5, 0.5], "red must be at most 1 (pixels go from 0 to 1)"),
        ("std", [0.5, 0.0, 0.5], "green must be above 0"),
        ("std", [0.5, 0.5, float("nan")], "blue must be a finite number"),
    ],
)
def test_mean_and_standard_deviation(key, values, message):
    with pytest.raises(UserError) as error:
        check_list(f"data.{key}", values, dict.fromkeys(("red", "green", "blue"), CHANNELS[f"data.{key}"]))
    assert message in str(error.value)


def test_data_that_the_settings_do_not_fit():
    fake = fake_data.load_multiclass(None)
    cases = [
        (
            ["data.num_classes=50"],
            fake_data.load_multilabel(None),
            "data.task=multiclass: the images have",
        ),
        (
            ["data.task=multilabel", "data.num_classes=50"],
            fake_data.load_multilabel(None),
            "has 40 classes",
        ),
        (
            ["data.task=auto", "classifier=class_means"],
            fake_data.load_multilabel(None),
            "classifier=class_means: images must have one class each",
        ),
        (["patience=2", "data.val_fraction=0"], fake, "patience=2 needs a validation set"),
        ([], replace(fake, class_names=("a",)), "the images have one class only, a"),
        ([], replace(fake, train=Images([], [])), "the training set has no images"),
        ([], replace(fake, test=Images([], [])), "the test set has no images"),
        ([], replace(fake, class_names=("a", "b")), "a training label is not one of the 2 classes"),
        (
            ["data.stream=true", "data.drift=true"],
            replace(fake, train_labels=None),
            "no single class to come",
        ),
    ]
    for overrides, splits, message in cases:
        with pytest.raises(UserError, match=message):
            validate_data(composed("data.num_classes=null", *overrides), splits)
    validate_data(composed("data.num_classes=5"), fake)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=0"], ["seed=4294967295"], ["trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0.0"],
        ["trainer.limit_train_batches=1"], ["trainer.limit_train_batches=1.0"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.devices=2"], ["trainer.gradient_clip_val=0"], ["data.color_jitter=[0.4,0.4,0.4,0.5]"],
        ["patience=3", "class_weights=balanced"], ["data=table", "data.csv=a=b (1).csv"],
        ["batch_size=256", "resolution=320"], ["name=äöü (1)"], ["++batch_size=4"], ["wandb.tags=[a,b]"],
        ["checkpoint=https://example.org/weights.pth?name=a&size=b"],
        ["trainer.devices=99", "trainer.accelerator=gpu", "trainer.precision=16-mixed", "dry_run=true"],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_right_is_not_refused(monkeypatch, overrides):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 2)
    validate(composed(*overrides))


TEXTS = [
    *("/my photos/a=b", "/bilder/äpfel", "/a(1)", '/say "hi"', "it's", "a\\b", "a b", "/x#y", "=1", "~/x"),
    *("007", "1e3", "2024_11_27", "true", "0x10", "{a", "[x", "日本/猫", "100%", "a&b;c", "`x`", "ends\\"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_paths_are_taken_as_they_are(text):
    arguments = [f"data.root={text}", f"output_dir={text}"]
    cfg = composed(*arguments)
    assert cfg.data.root == cfg.output_dir == text
    assert [plain_value(argument) for argument in prepared(arguments)] == [text, text]


def test_what_has_a_meaning_keeps_it():
    unchanged = ["checkpoint=null", "data.root=${output_dir}", 'data.root="/a=b"', "data.root=a,b", "lr=1e-3"]
    assert prepared([*unchanged, "-m", "--cfg=job"]) == [*unchanged, "-m", "--cfg=job"]
    assert composed("checkpoint=null").checkpoint is None


def test_the_remedy_is_what_the_shell_needs(refused):
    """What is printed, typed into a shell, gives the value that was meant."""
    line = refused("lr=it's (1")
    remedy = line.removeprefix("lr=it's (1: quote the value: ")
    shell = f'{sys.executable} -c "import sys; print(sys.argv[1])" {remedy}'
    typed = subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout.removesuffix("\n")
    assert plain_value(typed) == "it's (1"


def test_values_that_differ_name_other_folders():
    values = ["a (1)", "a 1", "a/1", "a+1", "/a 1", "a 1/", "ä", "a", "x-lr_1", "x", "(", ")", " "]
    assert len({folder_names.readable(value) for value in values}) == len(values)
    assert folder_names.readable("1e-3") == "1e-3" and folder_names.readable("ä.b") == "ä.b"
    long = [folder_names.shortened("ä" * 100 + end, 120) for end in "xy"]
    assert long[0] != long[1] and all(len(name.encode()) < 130 for name in long)


@pytest.mark.parametrize("arguments", [["seed=range(0,0)"], ["lr=1e-3", "seed=range(3,0)"]])
def test_a_sweep_without_jobs(arguments):
    with pytest.raises(HydraException, match=r"seed=range.*: holds no values, so there are no jobs"):
        points({}, [{}], arguments)


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("metod", "; did you mean method?"), ("Method", "; did you mean method?"),
        ("fraction.val", ""), ("batch-size", "; did you mean batch_size?"),
        ("workers", "; did you mean data.workers?"), ("engine.workers", "; did you mean data.workers?"),
        ("xyz", ""), ("", ""),
    ],
)  # fmt: skip
def test_suggestions(wanted, hint):
    assert did_you_mean(wanted, ["method", "batch_size", "data.workers", "lr"]) == hint


@pytest.mark.parametrize(
    ("parse", "argument", "message"),
    [
        (lambda given: key_values(given, report.Options), "outptus=x", "did you mean outputs?"),
        (lambda given: key_values(given, report.Options), "outputs", "outputs: not key=value"),
        (lambda given: key_values(given, report.Options), "--hepl", "--hepl: unknown; one of outputs, "),
        (lambda given: key_values(given, dashboard.Options), "entitty=me", "did you mean entity?"),
        (lambda given: key_values(given, dashboard.Options), "dry_run=perhaps", "dry_run: "),
        (bench.parse, "modle=resnet50", "did you mean model?"),
        (bench.parse, "model=resnet51", "model=resnet51: unknown; did you mean resnet"),
        (bench.parse, "method=bais", "method=bais: unknown; did you mean bias?"),
        (bench.parse, "norm=bm", "norm=bm: unknown; of bn, "),
        (bench.parse, "plans=leen", "plans=leen: unknown; did you mean lean?"),
        (bench.parse, "batch_size=0", "batch_size=0: must be at least 1"),
        (bench.parse, "batch_size=many", "batch_size"),
        (bench.parse, "resolution=100000", "resolution=100000: must be at most 4096"),
        (bench.parse, "slice_kb=nan", "slice_kb=nan: must be a finite number"),
        (bench.parse, "num_classes=100000000", "num_classes=100000000: must be at most"),
        (bench.parse, "rounds=-1", "rounds=-1: must be at least 0"),
        (bench.parse, "rounds=[1", "rounds=[1: not key=value"),
    ],
)
def test_the_other_programs(parse, argument, message):
    with pytest.raises(UserError) as error:
        parse([argument])
    line = one_line(error.value)
    assert message in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: OmegaConf.create({"a": "${nope}"}).a,
        lambda: OmegaConf.structured(report.Options).nope,
        lambda: OmegaConf.from_dotlist(["a=[1"]),
        lambda: OverridesParser.create().parse_override("a=(1"),
        lambda: check_list("data.mean", [1], {"red": SHARE, "green": SHARE, "blue": SHARE}),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_1(capsys, mistake):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        mistake()
    err = capsys.readouterr().err
    assert stopped.value.code == 1 and err.startswith("error: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "bug", [ValueError("of our own"), RuntimeError(), KeyError("name"), OSError(5, "disk")]
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as seen, one_line_errors():
        try:
            raise KeyError("first")
        except KeyError:
            raise bug  # noqa: B904
    assert isinstance(seen.value.__context__, KeyError)


PROGRAMS = [
    ("run.py", ["+foo=1"], 1, "foo: no such setting"),
    ("run.py", ["-m", "+bach_size=4,8"], 1, "did you mean batch_size?"),
    ("run.py", ["-m", "seed=range(0,0)"], 1, "holds no values"),
    ("run.py", ["--nope"], 2, "unrecognized arguments: --nope"),
    ("pretrain.py", ["probe=nowhere", "teacher=x"], 1, "probe=nowhere: no such folder"),
]


def test_the_programs_end_with_one_line(tmp_path):
    """Exit code, no traceback, nothing written."""
    folder = tmp_path / "here"
    begun = [
        processes.start(folder, arguments, name, str(number))
        for number, (name, arguments, _, _) in enumerate(PROGRAMS)
    ]
    for program, (_, _, code, message) in zip(begun, PROGRAMS, strict=True):
        assert program.wait() == code and not program.stdout
        error = program.said
        assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not list(folder.iterdir())


def test_nothing_but_locks_needs_posix(tmp_path):
    """Every module can be imported where Python has none of POSIX's, silently, without temporary files.

    What a dry run and a prediction import is what they need, because that takes seconds.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    script = """
import importlib, pathlib, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
import tinytl
import predict
import tinytl.experiment.plan, tinytl.experiment.program, tinytl.experiment.terminal.planned
from tinytl.system.processes import is_first_process
assert is_first_process()
slow = {"pytorch_lightning", "torchmetrics", "sklearn", "matplotlib"} & set(sys.modules)
assert not slow, f"a dry run and a prediction need no {slow}"
for path in sorted([*root.glob("*.py"), *(root / "tinytl").rglob("*.py")]):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if name not in WITH_EXTRAS:
        importlib.import_module(name)
        print(name)
from tinytl.memory import process
assert process.peak_process_bytes() > 0
assert sys.modules.get("wandb") is None, "W&B makes temporary folders when it is imported"
"""
    script = script.replace("WITH_EXTRAS", repr(WITH_EXTRAS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore:only soft file lock", "-c", script, str(ROOT / "src")],
        capture_output=True, text=True,
        env={**environment, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
    assert {"run", "tinytl.experiment.program", "tinytl.memory.process"} <= set(done.stdout.split())


WITH_EXTRAS = {"tinytl.experiment.tracking.boards"}  # needs an extra


def crops(seed, key):
    """A random crop of an image of noise, as a training set gives it."""
    images = fake_data.load_multiclass(None).train
    return Transformed(images, range(16), train_transform(32, (0.5,) * 3, (0.5,) * 3), seed)[key][0]


def test_every_seed_of_32_bits_works():
    """A crop depends on all 32 bits of the seed and on the key, mixed by NumPy's SeedSequence."""
    image = fake_data.load_multiclass(None).train[5][0]
    torch.manual_seed(int(numpy.random.SeedSequence((3, 21)).generate_state(1)[0]))
    assert torch.equal(crops(3, 21), train_transform(32, (0.5,) * 3, (0.5,) * 3)(image))
    splits = fake_data.load_multiclass(None)
    for seed in (2**24 - 1, 2**24, 20241127, 2**31, 2**32 - 1):
        crops(seed, 21)
        data = ImageDataModule(
            splits=splits, resolution=32, batch_size=2, mean=(0.5,) * 3, std=(0.5,) * 3, val_fraction=0.25,
            seed=seed,
        )  # fmt: skip
        assert len(data.example_images(2)) == len(next(iter(data.train_dataloader()))[0]) == 2
        shuffle = EpochShuffle(16, 16, seed)
        shuffle.set_epoch(100_000)
        assert len(list(shuffle)) == 16 and len(list(Drift([0, 1, 2], seed))) == 3
        seed_everything(seed, workers=True, verbose=False)


def test_a_run_with_the_largest_seed(tmp_path):
    run(composed(f"output_dir={tmp_path}", "name=run", "debug=fast", "seed=4294967295", *fake_data.FAKE))
    assert '"status": "finished"' in (tmp_path / "run" / "results.json").read_text()


def test_folders_of_images_that_differ_name_other_runs():
    def name(*arguments):
        HydraConfig.instance().set_config(composed(*arguments, hydra=True))
        return composed(*arguments).name

    try:
        names = [name(f"data.root={root}") for root in ("a (1)", "a 1", "a/1")]
        assert len(set(names)) == 3 and all("-data.root_a+1+" in one for one in names)
        assert name('data.root="a (1)"') == names[0]  # quoted or not, it is the same folder
        assert name("lr=1e-3").endswith("-s0-lr_1e-3")
    finally:
        HydraConfig.instance().cfg = None

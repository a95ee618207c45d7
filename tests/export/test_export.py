"""Exported files give PyTorch's results in their own runtime and hold 8 bits; others are refused."""

import json
import sys
from dataclasses import replace
from math import nan

import pytest
import torch
from image_folders import write_classes
from trained_adapters import CLASSES, MEAN, STD, write_run

import export as program
from tinytl.errors import UserError
from tinytl.experiment.schema import CONF
from tinytl.export import formats
from tinytl.export.check import Comparison, refuse_difference
from tinytl.export.check_images import check_images
from tinytl.prediction import exported_files
from tinytl.prediction.adapter import load_adapter
from tinytl.prediction.classifier import open_classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
CPU = torch.device("cpu")


@pytest.fixture
def exported(monkeypatch, capsys):
    """Runs the program in this process; returns its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        code = 0
        try:
            program.main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def frozen_elements(network):
    layers = (m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


def elements(path, kind):
    """How many numbers of a type an ONNX file holds."""
    tensors = onnx.load(path).graph.initializer
    number = onnx.TensorProto.DataType.Value(kind)
    return sum(torch.Size(tensor.dims).numel() for tensor in tensors if tensor.data_type == number)


def largest_difference(network, path, images):
    """Between the file in its runtime and PyTorch in float64, in one batch, relative to the largest logit."""
    logits, description = exported_files.open_exported(str(path))
    assert (description.class_names, description.mean, description.std) == ([*CLASSES], MEAN, STD)
    with torch.inference_mode():
        expected, found = network.double()(images.double()), logits(images)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("norm", "method", "quantize", "file", "bits"),
    [
        ("gn", "bias", "int8", "a.onnx", "INT8"),
        ("bn_frozen", "last", "kmeans", "a.onnx", "UINT8"),
        ("gn", "bias", "kmeans", "a.pt2", None),
    ],
)
def test_files(tmp_path, exported, norm, method, quantize, file, bits):
    network = write_run(tmp_path / "run", norm, method, quantize)
    write_classes(tmp_path / "pictures", "ant", "dog", images=5)
    code, out, _ = exported(
        f"adapter={tmp_path}/run", f"output={tmp_path}/{file}", f"images={tmp_path}/pictures"
    )
    assert code == 0 and "top-1" in out
    beside = json.loads((tmp_path / f"{file}.json").read_text())
    frozen = frozen_elements(network)
    assert beside["export"]["in_8_bits"] == beside["export"]["frozen"] == frozen
    assert beside["class_names"] == [*CLASSES] and beside["resize"] == 37 and beside["quantize"] == quantize
    assert beside["export"]["check"]["images"] == 10
    for size in (1, 3, 9):
        assert largest_difference(network, tmp_path / file, torch.randn(size, 3, 32, 32)) < 1e-5
    if bits:
        assert elements(tmp_path / file, bits) == frozen
        nodes = [node.op_type for node in onnx.load(tmp_path / file).graph.node]
        assert ("DequantizeLinear" in nodes) == (bits == "INT8")
        assert not any(node.metadata_props for node in onnx.load(tmp_path / file).graph.node)
    from_run, from_file = (open_classifier(str(place), CPU) for place in (tmp_path / "run", tmp_path / file))
    paths = sorted((tmp_path / "pictures").rglob("*.png"))
    for one, other in zip(*(c.predict(paths, None, 4) for c in (from_run, from_file)), strict=True):
        assert torch.allclose(one.probabilities, other.probabilities, atol=1e-5)


def test_float32_where_asked(tmp_path, exported):
    network = write_run(tmp_path / "run", "bn_frozen", "last")
    assert exported(f"adapter={tmp_path}/run", "weights=float32", "format=torch")[0] == 0
    file = tmp_path / "run" / "model.pt2"
    tensors = torch.export.load(file).state_dict
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    assert json.loads((tmp_path / "run" / "model.pt2.json").read_text())["export"]["in_8_bits"] == 0
    assert largest_difference(network, file, torch.randn(2, 3, 32, 32)) < 1e-5


def test_a_file_that_differs_is_not_left(tmp_path, exported, monkeypatch):
    write_run(tmp_path / "run", "bn_frozen", "last")
    wrong = replace(
        formats.FORMATS["torch"],
        run=lambda path: lambda images: exported_files.run_torch(path)[0](images) * (1 + 2e-4),
    )
    monkeypatch.setitem(formats.FORMATS, "torch", wrong)
    (tmp_path / "old.pt2").write_text("an earlier file")
    code, _, err = exported(f"adapter={tmp_path}/run", f"output={tmp_path}/old.pt2")
    assert code == 1 and "format=torch: the exported network differs from PyTorch by" in err
    assert len(err.splitlines()) == 1 and (tmp_path / "old.pt2").read_text() == "an earlier file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt2", "run"]


def test_what_an_exporter_refuses_is_one_line(tmp_path, exported, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setitem(formats.FORMATS, "torch", replace(formats.FORMATS["torch"], write=refuse))
    write_run(tmp_path / "run", "bn_frozen", "last")
    code, _, err = exported(f"adapter={tmp_path}/run", "format=torch")
    assert code == 1
    assert err == "error: format=torch: tinytl_tiny cannot be exported to it (no such operator)\n"


@pytest.mark.parametrize(("probabilities", "logits"), [(nan, 0.0), (0.0, nan), (2e-4, 0.0), (0.0, 2e-4)])
def test_differences_that_are_refused(probabilities, logits):
    with pytest.raises(UserError, match="differs from PyTorch"):
        refuse_difference(Comparison(5, "noise", probabilities, logits, 5, None, None), "onnx")


def test_the_runs_own_test_images(tmp_path):
    write_classes(tmp_path / "data" / "train", *CLASSES, images=2)
    write_classes(tmp_path / "data" / "test", *CLASSES, images=3)
    data = {"loader": "tinytl.data.folder.load", "root": str(tmp_path / "data")}
    write_run(tmp_path / "run", "bn_frozen", "last", data=data)
    found = check_images(load_adapter(str(tmp_path / "run")), None, most=8)
    assert found.origin == "test images of the run" and found.images.shape == (8, 3, 32, 32)
    assert found.labels is not None and sorted(set(found.labels.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("format=onnx", "adapter=... must be given"),
        ("adapter=run format=onxx", "format=onxx: unknown; one of onnx, torch, executorch"),
        ("adapter=run format=onnx output=a.pt2", "a file of format=onnx ends in .onnx"),
        ("adapter=run output=a.bin", "a file of format=onnx ends in .onnx"),
        ("adapter=run weights=int4", "weights=int4: must be int8 or float32"),
        ("adapter=run check_images=0", "check_images=0"),
        ("adapter=a.onnx", "a.onnx: an exported file; a run or an adapter is needed"),
        ("adapter=nothing", "adapter=nothing: no such file or folder"),
        ("adapter=run images=nothing", "images=nothing: no such file or folder"),
    ],
)
def test_mistakes_in_one_line(tmp_path, exported, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", "bn_frozen", "last")
    code, out, err = exported(*arguments.split())
    assert code == 1 and not out and line in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("onnx", "onnxscript", "export"), ("executorch", "executorch", "executorch")],
)
def test_a_missing_package_is_named(exported, monkeypatch, name, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = exported("adapter=run", f"format={name}")
    assert code == 1 and missing in err and f"pip install -e '.[{extra}]'" in err


def test_executorch(tmp_path, exported):
    pytest.importorskip("executorch.exir")
    network = write_run(tmp_path / "run", "gn", "tinytl")
    code, out, _ = exported(f"adapter={tmp_path}/run", "format=executorch", f"output={tmp_path}/a.pte")
    assert code == 0 and "0 of" in out
    assert largest_difference(network, tmp_path / "a.pte", torch.randn(3, 3, 32, 32)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn_frozen", "gn"])
@pytest.mark.parametrize("model", [*MODELS, "resnet18"])
def test_every_backbone_in_onnx(tmp_path, exported, model, norm):
    """With lite residual modules, where it can have them and they are not larger than the network."""
    without = model in ("inception_v3", "resnet50")
    method, resolution = ("bias", 80) if without else ("tinytl", 64)
    network = write_run(tmp_path / "run", norm, method, model=model, resolution=resolution)
    code, _, err = exported(f"adapter={tmp_path}/run", f"output={tmp_path}/a.onnx")
    assert code == 0, err
    assert elements(tmp_path / "a.onnx", "INT8") == frozen_elements(network)
    images = torch.randn(2, 3, resolution, resolution)
    assert largest_difference(network, tmp_path / "a.onnx", images) < 1e-4

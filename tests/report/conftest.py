"""Runs that are written by hand, and the report of them."""

import copy
import json
import sys

import pytest

import report
from tinytl.report import tables

RECORD = {
    "status": "finished",
    "sweep": "table2",
    "fingerprint": "0",
    "config": {
        "data": {
            **{"name": "cars", "loader": "tinytl.data.torchvision_sets.cars", "val_fraction": 0},
            **{"lr": 8e-4, "lr_batch1": 2e-4},
        },
        "model": {"name": "proxylessnas_mobile"},
        "method": {"name": "tinytl"},
        "norm": {"name": "gn"},
        "engine": {"name": "lean"},
        "lite_residual": {
            **{"enabled": True, "kernel_size": 5, "groups": 2, "expansion": 1.0, "pooling": 2},
            **{"upsampling": "bilinear", "pretrained": True},
        },
        "trainer": {f"limit_{part}_batches": 1.0 for part in ("train", "val", "test")},
        "batch_size": 8, "resolution": 224, "memory_budget_mb": None, "epochs": 50, "lr": 8e-4, "seed": 0,
        "quantize": "int8", "checkpoint": "weights.pth",
    },
    "metrics": {"test/top1": 0.85, "test/loss": 0.5},
    "curves": {"epoch": [1, 2], "train/loss": [2.0, 1.0], "val/top1": [0.5, None]},
    "memory": {
        "paper_mb": 37.5, "predicted_mb": 84.0, "measured_mb": 83.5, "lean_mb": 60.0, "process_mb": 400.0,
        "measured_split_mb": {"parameters": 40.0, "activations": 43.5},
        "activation_bits": {"ReLU6": 1.0},
    },
    "params": {"total": 1, "trainable": 1, "lite_residual_pretrained": True},
    "time": {"seconds": 60.0, "images_per_second": 10.0},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The folder of the runs."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


@pytest.fixture
def outputs(folder):
    """Writes a run: RECORD with changes, `{"config.seed": 1}` by dotted keys."""

    def write(name, changes=()):
        record = copy.deepcopy(RECORD)
        for key, value in dict(changes).items():
            *above, last = key.split(".")
            place = record
            for part in above:
                place = place[part]
            place[last] = value
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(json.dumps(record))

    return write


@pytest.fixture
def reported(folder, tmp_path, monkeypatch):
    """Runs the program; returns the folder it wrote."""

    def run(outputs=folder):
        arguments = [f"outputs={outputs}", f"output_dir={tmp_path / 'report'}"]
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        report.main()
        return tmp_path / "report"

    monkeypatch.setattr(tables, "count_mb", lambda cell: 37.1)  # seconds; test_count has the figures
    return run

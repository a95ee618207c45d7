"""The notebooks run from top to bottom, and their claims about memory hold."""

import itertools
import json
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from processes import ROOT, ended, start


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Runs a notebook in its folder; returns its variables."""
    matplotlib.use("agg")
    numbers = itertools.count()

    def program(command, **_):
        """Starts a program as other tests do, in place of subprocess.run."""
        script, *arguments = command[1:]
        return ended(start(tmp_path / "here", arguments, Path(script).name, f"program{next(numbers)}"))

    monkeypatch.setattr(subprocess, "run", program)
    monkeypatch.setenv("TINYTL_OUTPUTS", str(tmp_path))
    monkeypatch.chdir(ROOT / "notebooks")

    def run(name):
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        names: dict = {}
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
        plt.close("all")
        return names

    return run


def test_memory_anatomy(notebook):
    peak = {key: report.peak_bytes for key, report in notebook("memory_anatomy")["reports"].items()}
    assert peak["tinytl", "lean"] < peak["full", "lean"] < peak["full", "stock"] < peak["tinytl", "stock"]


def test_accuracy_vs_memory(notebook, tmp_path):
    for name, accuracy, size in (("a", 0.5, 10.0), ("b", 0.4, 20.0), ("c", 0.9, 30.0)):
        config = {
            "data": {"name": "digits", "loader": "", "lr": 1, "val_fraction": 0}, "method": {"name": name},
            "trainer": dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 1.0),
            "batch_size": 8, "epochs": 1, "lr": 1, "checkpoint": None, "lite_residual": {},
        }  # fmt: skip
        record = {"status": "finished", "config": config, "metrics": {"test/top1": accuracy}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(record | {"memory": {"measured_mb": size}}))
    assert list(notebook("accuracy_vs_memory")["front"].method) == ["a", "c"]


def test_adapters(notebook):
    names = notebook("adapters")
    assert min(names["accuracy"].values()) > 0.8
    assert names["predicted"].count("\n") == 7  # six pictures under a head
    assert names["file"].is_file() and "the same class for 6" in names["exported"]


def test_your_own_data(notebook):
    names = notebook("your_own_data")
    memory = names["results"]["memory"]
    assert names["results"]["status"] == "finished" and names["adapter"].is_file()
    assert memory["measured_mb"] <= memory["predicted_mb"] <= names["BUDGET_MB"]

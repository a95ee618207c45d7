"""The examples of docs/library.md run, one after the other."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from processes import ROOT

import tinytl

# isort: split
import timm

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.S)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    create = timm.create_model

    def without_download(name, pretrained, num_classes=1000):
        torch.manual_seed(0)
        network: Any = create(name, num_classes=7)
        network.reset_classifier(num_classes)
        return network

    monkeypatch.setattr(timm, "create_model", without_download)
    monkeypatch.chdir(tmp_path)
    images = torch.randn(4, 3, 32, 32)
    names = {"images": images, "loader": [(images, torch.tensor([0, 1, 2, 0]))]}
    assert len(BLOCKS) == 3
    exec(BLOCKS[0], names)
    tinytl.save(names["model"], "cars")
    exec(BLOCKS[1], names)
    assert "('flowers', 'cars')" in capsys.readouterr().out
    assert not hasattr(names["plain"], "tinytl")
    exec(BLOCKS[2], names)
    assert tinytl.summary(names["network"]).trained["lite_residual"] > 0


def test_the_library_imports_no_libraries_of_the_programs():
    """All public names, in a process of its own."""
    unwanted = ("hydra", "omegaconf", "pytorch_lightning", "wandb", "pandas", "matplotlib", "sklearn", "rich")
    code = (
        "import sys, tinytl; [getattr(tinytl, name) for name in tinytl.__all__]; "
        f"print([name for name in {unwanted} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done


def test_every_public_name_is_there():
    assert all(hasattr(tinytl, name) for name in tinytl.__all__) and {*tinytl.__all__} <= {*dir(tinytl)}
    with pytest.raises(AttributeError, match="has no attribute 'adept'"):
        tinytl.adept  # type: ignore[attr-defined]  # noqa: B018

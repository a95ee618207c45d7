"""The notebooks run from top to bottom."""

import json

import pytest
from conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, capsys):
    cells = json.loads(path.read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert "kept for the backward pass" in printed
    kept = {method: report.kept_bytes for method, (report, _) in names["reports"].items()}
    assert kept["last"] < kept["full"] < kept["tinytl"]  # stock PyTorch saves nothing

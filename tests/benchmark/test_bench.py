"""Test the benchmark: its rows, its plot, and what it refuses."""

import json
import sys

import pytest
import tiny_network  # noqa: F401  (timm knows it from here on)

import bench
from tinytl.assembly import TrainingStep
from tinytl.benchmark.plans import steps_under
from tinytl.memory import measure


def test_rows_and_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "in_fresh_process", lambda function, *arguments: function(*arguments))
    small = ["model=tinytl_tiny", "resolution=64", "method=tinytl", "batch_size=1,2", "rounds=1"]
    files = [f"json={tmp_path}/bench.json", f"plot={tmp_path}/bench.png"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *small, *files, "plans=stock,lean,smallest"])
    bench.main()
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["batch_size"], row["plan"]) for row in rows] == [
        *((1, plan) for plan in ("stock", "lean", "smallest")),
        *((2, plan) for plan in ("stock", "lean", "smallest")),
    ]
    asked = "model method norm engine plan batch_size resolution measured_mb rss_mb paper_mb step_time_ratio"
    for row in rows:
        assert set(asked.split()) <= set(row)
        assert row["lower_bound_mb"] <= row["measured_mb"] == pytest.approx(sum(row["split_mb"].values()))
        assert (row["step_time_ratio"] == 1.0) == (row["plan"] == "stock")
    assert rows[5]["measured_mb"] < rows[4]["measured_mb"] < rows[3]["measured_mb"]
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "at the peak of smallest" in printed and "paper" in printed
    again = [f"rows={tmp_path}/bench.json", f"plot={tmp_path}/again.png", "method=tinytl"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *again, "plans=stock,lean"])
    monkeypatch.setattr(bench, "rows_of", None)  # nothing is measured
    bench.main()
    assert (tmp_path / "again.png").stat().st_size > 10_000


def test_plans_that_a_step_allows():
    step = TrainingStep.of("proxylessnas_mobile", "bn", "tinytl", 8, 224, 102)
    assert list(steps_under(step, ["stock", "lean", "small"])) == ["stock", "lean"]
    step = TrainingStep.of("proxylessnas_mobile", "gn", "tinytl", 256, 224, 102)
    assert list(steps_under(step, ["stock", "lean", "small"])) == ["lean", "small"]
    step = TrainingStep.of("proxylessnas_mobile", "gn", "tinytl", 1, 224, 102)
    assert steps_under(step, ["smallest 8 bits"])["smallest 8 bits"].plan.step_in_backward
    assert steps_under(step, ["lean"], slice_kb=4000.0)["lean"].plan.slice_kb == 4000.0


@pytest.mark.parametrize(
    "mistake", ["modle=resnet50", "plans=tiny", "batch_size=many", "slice_kb=0", "rows=none.json"]
)
def test_mistakes_in_one_line(monkeypatch, capsys, mistake):
    monkeypatch.setattr(sys, "argv", ["bench.py", mistake])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1

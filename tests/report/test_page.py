"""The page answers from means over seeds; a browser clicks through it, where there is one."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pandas
import pytest
from processes import ROOT

import report
from tinytl.assembly import TrainingStep
from tinytl.memory import measure
from tinytl.memory.step import build
from tinytl.report.groups import grouped, not_shown
from tinytl.report.own_sweeps import own_sweeps
from tinytl.report.runs import read

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_a_browser(outputs, reported):
    """Filters from the address, plots, sortable tables, links; no error in the console."""
    for index, data in enumerate(["cars", "cars", "pets"]):
        changes = {
            "config.data.name": data,
            "config.seed": index,
            "config.data.loader": f"tinytl.data.{data}.load",
        }
        outputs(f"run {index}", changes)
    page = reported() / "index.html"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
        "--enable-logging=stderr", "--dump-dom", f"file://{page}#data=cars",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "Uncaught" not in done.stderr, done.stderr
    dom = done.stdout
    rows = re.search(r'<table id="runs">.*?</table>', dom, re.DOTALL)
    assert rows and rows[0].count("<tr") == 1 + 2  # of three runs those on cars
    assert 'href="../outputs/run%200/results.json"' in rows[0]
    plots = re.findall(r'<div id="(\w+)" class="plot js-plotly-plot"', dom)
    assert plots == ["split", "curves"]
    assert dom.count('class="plot js-plotly-plot"') == 3  # those, and the panel of cars
    built = re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)
    assert "modebar-btn" in built and "Share chart" not in built  # it would upload the figure
    assert dom.count('class="point"') >= 2 and "Best method within" in dom
    assert (page.parent / "../outputs/run 0/results.json").is_file()


def opened(page, width=1400):
    """The page after its scripts, and what they complain of."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
        "--enable-logging=stderr", f"--window-size={width},1000", "--dump-dom", f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "Uncaught" not in done.stderr, done.stderr
    return done.stdout


def clicked(page, width=1400):
    """What each step of click_through.js saw."""
    steps = (Path(__file__).parent / "click_through.js").read_text()
    copy = page.parent / "clicked.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{steps}</script></body>"))
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', opened(copy, width), re.DOTALL)
    return json.loads(unescape(told))


def real_images(outputs):
    """TinyTL: 60 and 70 % at 10 MB; full: 80 % at 30 MB and 65 % at 16 MB; last: 50 % at 5 MB."""
    for name, method, seed, top1, mb, px in (
        ("a", "tinytl", 0, 0.6, 10.0, 224), ("b", "tinytl", 1, 0.7, 10.0, 224),
        ("c", "full", 0, 0.8, 30.0, 224), ("d", "full", 0, 0.65, 16.0, 192), ("e", "last", 0, 0.5, 5.0, 224),
    ):  # fmt: skip
        outputs(name, {
            "sweep": "real_images", "config.method.name": method, "config.seed": seed,
            "metrics.test/top1": top1, "memory.lean_mb": mb, "config.resolution": px,
            "memory.measured_mb": 8 * mb,
        })  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_reader_clicks_through_the_page(outputs, reported):
    real_images(outputs)
    told = clicked(reported() / "index.html")
    assert told["panels"] == ["cars"] and told["paper"] > 10
    points = sorted([name, x, y, std and round(std, 3)] for name, x, y, std in told["points"])
    assert points == [
        ["full, gn", 16, 65, None], ["full, gn", 30, 80, None], ["last, gn", 5, 50, None],
        ["tinytl, gn", 10, 65, 7.071],
    ]  # fmt: skip
    assert told["front"] == [[5, 10, 30], [50, 65, 80]]
    assert told["best"][0][:6] == ["cars", "last", "50.0", "1", "5.00", "no other method fits"]
    assert told["best_in_20"][0][:6] == ["cars", "tinytl", "65.0 ± 7.1", "2", "10.0", "full, 192 px"]
    assert told["equal"][0][1:7] == [
        "65.0", "10.0", "tinytl (65.0 ± 7.1 %, 2 seeds)", "16.0", "full, 192 px (65.0 %, 1 seed)", "0.63",
    ]  # fmt: skip
    assert sorted(told["measured"]) == [128, 240]  # of full
    assert (told["filtered"], told["address"], told["all"]) == (2, "#method=tinytl", 5)
    assert told["selected"] == told["bold"] == told["seed_one"] == 1  # none for the 1 of "192 px, seed 0"
    assert told["sorted"] == [["50.0", "65.0", "65.0", "80.0"], ["80.0", "65.0", "65.0", "50.0"]]
    assert len(told["markdown"]) == 2 + 4 + 1 and "| tinytl |" in "".join(told["markdown"])
    assert told["latex"].startswith("\\begin{tabular}") and "accuracy, \\% &" in told["latex"]
    assert told["labels"] == ["full", "last", "tinytl"] and "unless labelled: 224 px" in told["usual"]
    assert told["repeated"] == [["cars", "nothing: the least is 10.0 MB, tinytl"]]  # in 8 MB, with two seeds
    assert "in the run itself" in told["note"] and len(told["clicked"]) == 1
    assert f"<br>{told['clicked'][0]}<extra>" in told["hover"]
    assert told["widths"][0] <= told["widths"][1]
    assert "table2" not in told["folded"] and "figure5" in told["folded"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_page_without_runs_has_the_papers_points(reported):
    dom = opened(reported() / "index.html", 800)
    assert "There are no finished runs" in dom and dom.count('class="panel"') == 9
    assert re.search(r"◇ full<small> trains every parameter", dom)  # a legend for the paper's points
    for empty in ("memory-parts", "learning", "all-runs"):
        assert re.search(rf'<section id="{empty}" hidden', dom)


def test_seeds_are_one_point_and_each_other_run_says_why(folder, outputs):
    outputs("a")
    outputs("b", {"config.seed": 1, "metrics.test/top1": 0.87})
    outputs("again", {"config.seed": 1, "config.output_dir": "elsewhere"})
    outputs("part", {"config.trainer.limit_test_batches": 2})
    outputs("untested", {"metrics.test/top1": None, "config.lr": 0.1})
    outputs("unknown", {"memory.measured_mb": None, "memory.lean_mb": None, "config.resolution": "?"})
    runs, groups, keys = grouped(read(folder)[0])
    point = groups.loc[runs[runs.name == "a"].group.iloc[0]]
    assert (point.seeds, round(point.accuracy, 6)) == (2, 85) and keys == ["resolution", "lr"]
    assert dict(not_shown(runs)[["name", "why"]].values) == {
        "b": "another run has the same settings and the same seed",
        "part": "a part of the test set: trainer.limit_test_batches=2",
        "unknown": "its memory is not known",
        "untested": "it has no test accuracy",
    }


def test_a_sweep_of_ones_own_is_a_table_of_what_varies(folder, outputs):
    for method in ("tinytl", "full"):
        for lr in (0.01, 0.1):
            settings = {"config.method.name": method, "config.lr": lr, "metrics.test/top1": 10 * lr / 2}
            outputs(f"{method}-{lr}", {"sweep": "mine", **settings})
    _, groups, keys = grouped(read(folder)[0])
    (table,) = own_sweeps(groups, keys, {"table2"}).values()
    assert list(table.columns) == ["lr", "full", "tinytl"]
    assert table.values.tolist() == [["0.01", *2 * ["5.0, 60.0 MB"]], ["0.1", *2 * ["50.0, 60.0 MB"]]]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"a": "data/photos", "b": "data/photos"}, {"a": "photos", "b": "photos"}),
        ({"a": "one/train.v2", "b": "two/train.v2"}, {"a": "one/train.v2", "b": "two/train.v2"}),
    ],
)
def test_folders_are_called_by_their_name(folder, outputs, settings, names):
    for name, root in settings.items():
        outputs(name, {"config.data.name": "folder", "config.data.root": root})
    outputs("told", {"config.data.name": "otherwise", "config.data.root": "data/photos"})
    runs = read(folder)[0].set_index("name")
    assert runs.data.to_dict() == {**names, "told": "otherwise"}


def test_memory_under_the_lean_engine_is_that_of_a_real_step(folder, outputs):
    """Of a run on stock PyTorch that did not record it, with the number of classes from the parameters."""
    lean = TrainingStep.of("proxylessnas_w03", "gn", "tinytl", 2, 64, 7)
    network, _ = build(lean)
    record = {
        "config.model.name": "proxylessnas_w03", "config.batch_size": 2, "config.resolution": 64,
        "config.engine.name": "stock", "memory.lean_mb": None,
        "params.total": sum(parameter.numel() for parameter in network.parameters()),
    }  # fmt: skip
    outputs("stock", record)
    outputs("adapted", {**record, "config.teacher": "another network"})
    runs = read(folder)[0].set_index("name")
    measured_mb = measure.measure_memory(lean).report.peak_mb
    assert runs.lean_mb["stock"] == pytest.approx(measured_mb, rel=0.03)
    assert pandas.isna(runs.lean_mb["adapted"])


def test_a_picture_is_drawn_of_the_chosen_runs(folder, outputs, tmp_path, monkeypatch, capsys):
    for method, norm in (("tinytl", "gn"), ("full", "gn"), ("last", "bn")):
        settings = {"config.method.name": method, "config.norm.name": norm, "config.engine.name": "stock"}
        outputs(method, settings)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", f"outputs={folder}", *arguments])
        report.main()
        return capsys.readouterr().out

    path = tmp_path / "picture.png"
    assert run(f"picture={path}", "where=norm=gn").startswith("2 settings of 1 data sets")
    assert path.read_bytes().startswith(b"\x89PNG")
    for where in ("colour=red", "norm=native"):
        with pytest.raises(SystemExit):
            run(f"picture={path}", f"where={where}")
        assert capsys.readouterr().err.startswith("error: ")

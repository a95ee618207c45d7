"""The report of results.json files written by hand has the figures worked out by hand, and no others."""

import json
import re
import shutil
import statistics
import sys
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import pandas
import pytest
import yaml
from processes import ROOT

import report
from tinytl.experiment.sweep.grids import points
from tinytl.paper import tables as paper
from tinytl.report import coverage, tables, write
from tinytl.report.packed import pack, runs_of
from tinytl.report.runs import read


def cell(folder, table="table2", row="TinyTL-L+B @224", data="cars"):
    found = pandas.read_csv(folder / f"{table}.csv")
    return found[(found.row == row) & (found.data == data)].iloc[0]


def test_mean_spread_and_difference(outputs, reported):
    accuracies = [84.0, 85.5, 86.1]
    for seed, accuracy in enumerate(accuracies):
        outputs(f"run{seed}", {"config.seed": seed, "metrics.test/top1": accuracy / 100})
    folder = reported()
    found = cell(folder)
    assert found.paper == 85.0 and found.seeds == 3  # the paper's Table 2, Cars
    assert found.ours == pytest.approx(85.2) and found.difference == pytest.approx(0.2)
    assert found["std"] == pytest.approx(statistics.stdev(accuracies))
    assert (found.paper_mb, found.count_mb, found.measured_mb) == (37, 37.1, 83.5)
    assert "85.0 / 85.2 ± 1.1 (+0.2)" in (folder / "table2.md").read_text()
    assert r"85.0 / 85.2 $\pm$ 1.1 (+0.2)" in (folder / "table2.tex").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed", "reason": "no"},
        {"status": "out_of_memory", "reason": "no"},
        {"status": "running"},
        {"config.epochs": 3},
        {"config.trainer.limit_train_batches": 2},
        {"config.trainer.limit_test_batches": 1},
        {"config.data.loader": "my.loader"},
        {"config.data.val_fraction": 0.1},
        {"config.checkpoint": None},
        {"config.lr": 1e-3},
        {"config.norm.name": "bn"},
        {"config.lite_residual.groups": 4},
        {"config.lr": 1e-3, "config.data.lr": 1e-3},
        {"config.label_smoothing": 0.1},
        {"config.quantize": "off"},
        {"params.lite_residual_pretrained": False},
        {"config.batch_size": 1, "config.lr": 2e-4},
        {"config.resolution": 192},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_no_other_run_stands_for_the_papers(outputs, reported, changes):
    outputs("run", changes)
    folder = reported()
    found = cell(folder)
    assert found.seeds == 0 and pandas.isna(found.ours) and pandas.isna(found.measured_mb)
    if "status" in changes:
        assert (
            "85.00" not in (folder / "runs.md").read_text()
            and "There are no finished runs" in (folder / "index.html").read_text()
        )
        assert f"| {changes['status']} " in (folder / "not_finished.md").read_text()


def test_random_lite_residuals_are_table_4s(outputs, reported):
    outputs("run", {"params.lite_residual_pretrained": False, "config.lite_residual.pretrained": False})
    folder = reported()
    assert (
        cell(folder, "table4", "TinyTL-RandomL+B").ours == 85
        and cell(folder, "table4", "TinyTL-L+B").seeds == 0
    )


def test_table_1_and_the_front(outputs, reported):
    """The Pareto front against brute force."""
    points = [(10, 50), (20, 60), (15, 40), (30, 60), (40, 90), (40, 80)]
    for index, (size, accuracy) in enumerate(points):
        changes = {"config.seed": index, "memory.measured_mb": size, "metrics.test/top1": accuracy / 100}
        outputs(f"run{index}", changes)
    folder = reported()
    best = [
        (m, a) for m, a in points
        if not any((n <= m and b >= a and (n, b) != (m, a)) for n, b in points)
    ]  # fmt: skip
    front = pandas.read_csv(folder / "pareto.csv")
    assert sorted(zip(front.measured_mb, front.accuracy.round(6), strict=True)) == sorted(best)
    table = pandas.read_csv(folder / "table1.csv").set_index("layer")
    assert table.paper.to_dict() == {"relu": 1, "sigmoid": 32, "h-swish": 32}
    assert table.lean["relu"] == "1" and table.lean["sigmoid"] == "—"


def test_memory_by_kind(outputs, reported):
    outputs("a")
    outputs("b", {"config.seed": 1, "memory.measured_split_mb": {"parameters": 20.0, "activations": 63.5}})
    (row,) = pandas.read_csv(reported() / "memory.csv").to_dict("records")
    assert (row["parameters"], row["activations"], row["measured_mb"]) == (30, 53.5, 83.5)
    assert pandas.isna(row["gradients"])


def test_own_sweeps_are_grouped_over_seeds(outputs, reported):
    for seed, top1 in ((0, 0.5), (1, 0.7)):
        outputs(f"run{seed}", {"sweep": "norms", "config.seed": seed, "metrics.test/top1": top1})
    (row,) = pandas.read_csv(reported() / "norms.csv").to_dict("records")
    assert (row["norm"], row["batch_size"], row["seeds"]) == ("gn", 8, 2)
    assert row["accuracy"] == pytest.approx(60) and row["std"] == pytest.approx(14.1421, abs=1e-3)


def test_coverage_names_the_command(outputs, folder, monkeypatch):
    monkeypatch.setattr(tables, "count_mb", lambda cell: None)
    outputs("run")
    runs, _ = read(folder)
    found = coverage.coverage(tables.paper_cells(runs)).set_index(["table", "row", "data"])
    assert len(found) == len(paper.cells())
    assert found.missing["table2", "TinyTL-L+B @224", "cars"] == ""
    command = "python src/run.py -m +sweeps=figure5 data=aircraft method=tinytl resolution=288 batch_size=1"
    assert found.missing["figure5", "batch 1 @288", "aircraft"] == command
    assert "no such network" in found.missing["table3", "FT-Full NASNet-A Mobile", "cars"]


def test_a_table_says_in_words_what_is_missing(outputs, folder, monkeypatch):
    """On cars the row has a run; on the other eight data sets of its row it has none."""
    monkeypatch.setattr(tables, "count_mb", lambda cell: None)
    outputs("run")
    cells: Any = tables.paper_cells(read(folder)[0])
    said = coverage.missing(cells[cells.table == "table2"])
    others = "flowers102, cub200, food101, pets, aircraft, cifar10, cifar100, celeba"
    assert said.startswith("61 cells have no runs: FT-Last @224; ")
    assert f"; TinyTL-L+B @224 on {others}; " in said and "+sweeps=table2. " in said
    assert coverage.missing(cells[cells.table == "table3"]).startswith("None of the 57 cells has runs. ")
    ours = cells[cells.seeds.gt(0) & cells.table.eq("table2")]
    assert coverage.missing(ours) == "Every cell has runs."


def test_a_cell_s_command_runs_that_cell_alone():
    """Its settings are those of the cell, and seeds are all that its jobs differ in."""
    not_here = {cell.row for cell in paper.cells() if cell.model is None}
    assert not_here == {"FT-Full NASNet-A Mobile"}
    for cell in paper.cells():
        if cell.model is None:
            continue
        *_, sweep, text = coverage.command(cell).split(" ", 4)
        assert sweep == f"+sweeps={cell.table}"
        file = yaml.safe_load((ROOT / f"sweeps/{cell.table}.yaml").read_text())["hydra"]["sweeper"]
        jobs = points(file["params"], file.get("grids", [{}]), text.split())
        assert len(jobs) == {"table2": 5, "table4": 5}.get(cell.table, 1), text
        settings = {
            "model": cell.model, "data": cell.data, "method": cell.method, "resolution": str(cell.resolution),
            "checkpoint": paper.CHECKPOINTS[cell.model],
        }  # fmt: skip
        for job in jobs:
            values = dict(setting.split("=", 1) for setting in job)
            assert {key: values.get(key, settings[key]) for key in settings} == settings, text
            assert values["norm"] == ("gn" if cell.model in paper.WITH_GROUP_NORM else "bn")


def test_counts_beside_the_papers_memory():
    """Table 2 rounds to 1 MB; other networks within 6 % (paper's Table 3)."""
    for found in paper.cells():
        if found.table == "table2":
            assert tables.count_mb(found) == pytest.approx(found.memory_mb, abs=0.7)
        elif found.table == "table3" and found.model not in (None, "tinytl_specialized"):
            assert tables.count_mb(found) == pytest.approx(found.memory_mb, rel=0.06)


def test_broken_files_are_named_and_left_out(outputs, folder, reported, caplog):
    outputs("good")
    for name, text in (("torn", "{"), ("foreign", "[1]"), ("empty", '{"status": "finished"}')):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(text)
    (folder / "folder" / "results.json").mkdir(parents=True)
    assert cell(reported()).seeds == 1
    for name in ("torn", "foreign", "empty", "folder"):
        assert f"{name}/results.json: not a run's results" in caplog.text


def test_no_runs_at_all(reported, caplog):
    folder = reported()
    assert "holds no finished runs" in caplog.text
    assert cell(folder).paper == 85 and (folder / "index.html").is_file()


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.bad = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "link", "input"):
            self.open.append(tag)
        self.bad += [value for key, value in attrs if key in ("src", "href") and "://" in (value or "")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_and_names_cannot_break_it(outputs, reported):
    outputs("evil</script><b>&", {"config.model.name": "</script><script>alert(1)</script>"})
    outputs("failed", {"status": "failed", "reason": "<b>bad</b>"})
    text = (reported() / "index.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert not tags.open and not tags.bad
    assert text.count("<script>alert") == 0 and "<b>bad" not in text
    assert len(text) < 10e6


def test_real_images_how_much_of_the_gap_is_closed(folder, outputs):
    """Last 40, TinyTL 55, full 60 %: three quarters of what lies between; memory under the lean engine."""
    for method, top1 in (("last", 0.4), ("tinytl", 0.5), ("tinytl", 0.6), ("full", 0.6)):
        settings = {"sweep": "real_images", "config.method.name": method, "metrics.test/top1": top1}
        outputs(f"{method}-{top1}", {**settings, "memory.lean_mb": 100 * top1})
    outputs("longer", {"sweep": "real_images", "config.epochs": 99, "metrics.test/top1": 0.9})
    whole = tables.real_images(read(folder)[0])
    assert pandas.isna(whole[whole.epochs.eq(99)].gap_closed).all()  # nothing was trained as long
    table = whole[whole.epochs.ne(99)].set_index("method")
    assert table.gap_closed.round(6).to_dict() == {"last": 0, "tinytl": 75, "full": 100}
    assert table.lean_mb.round(6).to_dict() == {"last": 40, "tinytl": 55, "full": 60}
    assert table.seeds["tinytl"] == 2


def test_other_settings_are_no_other_seeds(folder, outputs):
    """Two learning rates of two seeds each, elsewhere; the last layer once, full fine-tuning twice."""
    for lr, seed, top1 in ((0.1, 0, 0.5), (0.1, 1, 0.7), (0.2, 0, 0.3), (0.2, 1, 0.3)):
        settings = {"sweep": "real_images", "config.lr": lr, "config.seed": seed, "metrics.test/top1": top1}
        outputs(f"tinytl-{lr}-{seed}", {**settings, "config.data.root": f"{seed}"})
    for method, lr in (("last", 0.1), ("full", 0.1), ("full", 0.2)):
        outputs(f"{method}-{lr}", {"sweep": "real_images", "config.lr": lr, "config.method.name": method})
    table = tables.real_images(read(folder)[0]).set_index("method")
    tinytl = table.loc["tinytl", ["settings", "accuracy", "seeds"]].values.tolist()
    assert tinytl == [["lr=0.1", pytest.approx(60), 2], ["lr=0.2", pytest.approx(30), 2]]
    assert table.settings["last"] == "" and table.settings["full"].tolist() == ["lr=0.1", "lr=0.2"]
    assert table.gap_closed.isna().all()


def test_a_setting_that_older_runs_do_not_know(folder, outputs):
    """Null in the newer run of a row: no difference; the list makes it a column of objects."""
    settings = {"sweep": "real_images", "config.data.color_jitter": None}
    outputs("older", {"sweep": "real_images"})
    outputs("newer", {**settings, "config.seed": 1})
    outputs("last", {**settings, "config.data.color_jitter": [0.4], "config.method.name": "last"})
    table = tables.real_images(read(folder)[0]).set_index("method")
    assert table.settings.to_dict() == {"tinytl": "", "last": ""} and table.seeds["tinytl"] == 2


def test_streams_have_two_accuracies(folder, outputs):
    for seed, stream, final in ((0, 0.4, 0.6), (1, 0.5, 0.7)):
        metrics = {"metrics.stream/top1": stream, "metrics.test/top1": final, "config.seed": seed}
        outputs(f"{seed}", {"sweep": "streams", "config.data.drift": True, **metrics})
    table = tables.ours("streams", read(folder)[0])
    assert table[["drift", "prequential", "accuracy"]].values.tolist() == [
        [True, *map(pytest.approx, (45, 65))]
    ]


def test_a_part_of_the_test_set_gives_no_accuracy(folder, outputs):
    """Its memory counts, beside another run's accuracy; the front of both takes it for nothing."""
    outputs("whole", {"sweep": "batch_sizes", "metrics.test/top1": 0.5, "memory.measured_mb": 20.0})
    part = {"metrics.test/top1": 0.9, "memory.measured_mb": 10.0, "config.trainer.limit_test_batches": 1}
    outputs("part", {"sweep": "batch_sizes", **part})
    runs = read(folder)[0]
    table = tables.ours("batch_sizes", runs)
    assert table[["accuracy", "seeds", "measured_mb"]].values.tolist() == [[50.0, 1, 15.0]]
    assert tables.pareto(runs).name.tolist() == ["whole"]


def test_cells_of_text_are_neither_formulas_nor_columns(tmp_path):
    """What a spreadsheet would compute gets an apostrophe; what would end a cell or a row does not."""
    texts = ['=HYPERLINK("x")', "+1+1", "-a", "@sum", "\t=1", "\r=1", "\n=1", "-3.5", "a|b\nc", "plain"]
    table = pandas.DataFrame({"a|b": texts, "number": [-float(i) for i in range(len(texts))]})
    write.write_table(tmp_path / "table", table, table)
    read = pandas.read_csv(tmp_path / "table.csv", dtype={"a|b": str}, keep_default_na=False)
    assert list(read["a|b"]) == [*(f"'{text}" for text in texts[:5]), "'\n=1", "'\n=1", *texts[7:]]
    assert list(read.number) == list(table.number)
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert len(rows) == len(texts) + 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert r"| a\|b c" in rows[-2] and r"| a\|b " in rows[0]
    assert len((tmp_path / "table.tex").read_text().splitlines()) == len(texts) + 6


@pytest.mark.parametrize("output_dir", ["/proc/report", "{}/file"])
def test_a_report_that_cannot_be_written(folder, tmp_path, monkeypatch, capsys, output_dir):
    (tmp_path / "file").write_text("a file")
    arguments = [f"outputs={folder}", f"output_dir={output_dir.format(tmp_path)}"]
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    monkeypatch.setattr(write, "all_tables", lambda *tables: {})
    monkeypatch.setattr(tables, "count_mb", lambda cell: None)
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == 1 and capsys.readouterr().err.splitlines()[-1].startswith(
        "error: output_dir="
    )


def packed_runs(path):
    """The records of a packed file, by name in its order."""
    return {run["name"]: run["record"] for run in map(json.loads, path.read_text().splitlines())}


def test_packed_runs_make_the_same_report(outputs, folder, reported, tmp_path, monkeypatch, capsys):
    for seed, name in enumerate(["b", "é b", "a"]):
        outputs(name, {"config.seed": seed, "metrics.test/top1": 0.8 + seed / 100})
    outputs("failed", {"status": "failed", "reason": "no\nreason"})
    tables_before = {path.name: path.read_text() for path in reported().iterdir() if path.suffix == ".csv"}
    packed = tmp_path / "new" / "runs.jsonl"
    monkeypatch.setattr(sys, "argv", ["report.py", f"outputs={folder}", f"pack={packed}"])
    shutil.rmtree(tmp_path / "report")
    capsys.readouterr()
    report.main()
    assert capsys.readouterr().out == f"4 runs, 3 of them finished, in {packed}\n"
    assert not (tmp_path / "report").exists()
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/results.json")}
    assert packed_runs(packed) == records and list(packed_runs(packed)) == ["a", "b", "failed", "é b"]
    shutil.rmtree(folder)
    for place in (packed, packed.parent):
        after = {path.name: path.read_text() for path in reported(place).iterdir() if path.suffix == ".csv"}
        assert after == tables_before and cell(tmp_path / "report").seeds == 3


def test_a_run_that_is_there_twice_is_its_folders(outputs, folder):
    outputs("both", {"metrics.test/top1": 0.1})
    outputs("packed", {"metrics.test/top1": 0.3})
    pack(folder, folder / "a.jsonl")
    for name in ("both", "packed"):
        shutil.rmtree(folder / name)
    outputs("both", {"metrics.test/top1": 0.2})
    runs = read(folder)[0].set_index("name")
    assert runs.accuracy.round(6).to_dict() == {"both": 20, "packed": 30}
    assert runs.results.to_dict() == {"both": folder / "both" / "results.json", "packed": None}
    (folder / "both" / "results.json").write_text("{")
    assert read(folder)[0].set_index("name").accuracy["both"] == pytest.approx(10)
    pack(folder, folder / "a.jsonl")  # its own runs are kept
    assert list(packed_runs(folder / "a.jsonl")) == ["both", "packed"]


def test_damaged_lines_and_foreign_files_are_named(outputs, folder, caplog):
    outputs("run")
    pack(folder, folder / "runs.jsonl")
    shutil.rmtree(folder / "run")
    good = (folder / "runs.jsonl").read_bytes()
    no_metrics = b'{"name": "x", "record": {"status": "finished", "config": {}}}\n'
    bad = [
        good[:99] + b"\n",
        b"\xff\n",
        b"[1]\n",
        b'{"name": 1, "record": {"status": "failed"}}\n',
        no_metrics,
    ]
    (folder / "runs.jsonl").write_bytes(b"".join([*bad, good]))
    (folder / "foreign.jsonl").write_text("a\nb\nc\n")
    (folder / "empty.jsonl").touch()
    (folder / ".sweep.1.jsonl").write_text("{}\n")  # a sweep's progress
    runs, others = read(folder)
    assert list(runs.name) == ["run"] and others.empty
    said = [message.split(": not a run's results")[0] for message in caplog.messages]
    lines = [f"{folder}/runs.jsonl:{number}" for number in range(1, 6)]
    assert sorted(said) == sorted([f"{folder}/foreign.jsonl:1-3", *lines])
    assert runs_of(folder / "foreign.jsonl") == []


@pytest.mark.parametrize(
    "path", ["/proc/runs.jsonl", "{}/file/runs.jsonl", "{}/folder.jsonl", "{}/runs.json"]
)
def test_a_packed_file_that_cannot_be_written(outputs, folder, tmp_path, monkeypatch, capsys, path):
    outputs("run")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.jsonl" / "inside").mkdir(parents=True)
    path = path.format(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", f"outputs={folder}", f"pack={path}"])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and line.startswith(f"error: pack={path}: ")
    assert not list(tmp_path.rglob("*unfinished*"))


def test_nothing_to_pack(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", f"outputs={folder}", f"pack={tmp_path / 'runs.jsonl'}"])
    with pytest.raises(SystemExit):
        report.main()
    assert capsys.readouterr().err == f"error: outputs={folder}: holds no runs\n"
    assert not (tmp_path / "runs.jsonl").exists()


def test_the_page_has_links_to_folders_only(outputs, folder, reported):
    outputs("packed run")
    pack(folder, folder / "runs.jsonl")
    shutil.rmtree(folder / "packed run")
    outputs("a run?", {"config.seed": 1})
    page = reported() / "index.html"
    (shown,) = re.findall(r"const RUNS = (.*);$", page.read_text(), re.MULTILINE)
    addresses = {run["name"]: run["address"] for run in json.loads(shown)}
    assert addresses == {"a run?": "../outputs/a%20run%3F/results.json", "packed run": None}
    assert (page.parent / unquote(addresses["a run?"])).is_file()

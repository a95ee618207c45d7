"""Test what a person sees: the first and the last lines of a run, its progress, and what a dry run prints."""

import csv
import json
import sys
from dataclasses import replace
from math import sqrt

import pytest
import torch
from configuration import composed, experiment
from fake_data import FAKE
from image_folders import write_classes, write_split
from tiny_network import TINY

from tinytl.errors import UserError
from tinytl.evaluation.interval import accuracy_interval
from tinytl.experiment import resolve as decisions
from tinytl.experiment.program import run
from tinytl.experiment.resolve import facts, resolve
from tinytl.experiment.terminal import progress
from tinytl.experiment.terminal.closing import show_closing
from tinytl.experiment.terminal.error_exit import _multirun_first
from tinytl.experiment.terminal.weighed import reason
from tinytl.experiment.validation.devices import check_devices
from tinytl.planner.method import Candidate, Weighed
from tinytl.records.durations import duration

OPENING = ["network", "method", "trains", "data", "memory"]
CLOSING = ["accuracy", "memory", "process", "time", "results"]


def labels(text):
    """What the lines are about."""
    return [line.split()[0] for line in text.splitlines() if line[:1].isalpha()]


def line_of(text, label, last=False):
    lines = [line for line in text.splitlines() if line.startswith(f"{label} ")]
    return lines[-1 if last else 0].removeprefix(label).strip()


@pytest.mark.parametrize("verbose", ["false", "true"])
def test_a_run_begins_with_five_lines_and_ends_with_five(ran, capsys, tmp_path, verbose):
    budget = ["memory_budget_mb=3", "data.val_fraction=0.2", "epochs=2"]
    results = ran(f"verbose={verbose}", *FAKE, *budget)
    text = capsys.readouterr().err
    said = [label for label in labels(text) if label in {*OPENING, *CLOSING}]
    assert said == [*OPENING, *CLOSING]
    params, memory, top1 = results["params"], results["memory"], results["metrics"]["test/top1"]
    assert f"{params['trainable']:,} of {params['total']:,} parameters" in line_of(text, "trains")
    assert (
        "fake" not in line_of(text, "data")
        and "13 images to train on, 3 to validate, 6 to test; 3 classes" in text
    )
    assert f"predicted {memory['predicted_mb']:.1f} MB for a step, budget 3.0 MB" in line_of(text, "memory")
    assert line_of(text, "accuracy").startswith(f"{100 * top1:.1f} % of 6 test images (95 % interval: ")
    assert line_of(text, "accuracy").endswith("by the best weights")
    assert f"measured {memory['measured_mb']:.1f} MB" in line_of(text, "memory", last=True)
    assert 0 < memory["process_base_mb"] <= memory["process_mb"]
    assert ("What trains" in text) == (verbose == "true") == (labels(text).count("engine") == 1)
    assert sum(group["parameters"] for group in params["groups"]) == params["total"]
    assert sum(g["parameters"] for g in params["groups"] if g["trainable"]) == params["trainable"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert {name: [float(row[name]) for row in rows] for name in rows[0]} == results["curves"]


def test_figures_of_other_tasks(capsys, tmp_path):
    """Several labels per image have no interval; a part of the test set is said to be one."""
    time = {"seconds": 4000.0, "images_per_second": 5.0}
    several = {"test/mean_average_precision": 0.5, "test/mean_accuracy": 0.75, "test/weights": "last"}
    show_closing({"metrics": several, "time": time}, tmp_path)
    text = capsys.readouterr().err
    assert "50.0 %: mean average precision, by the last weights" in text and "interval" not in text
    assert "67 min of training" in text and "process" not in text
    classes = {"a": {"images": 12}, "b": {"images": 8}}
    metrics = {"test/top1": 1.0, "test/part": 0.1, "stream/top1": 0.25}
    show_closing({"metrics": metrics, "classes": classes, "time": time}, tmp_path)
    text = capsys.readouterr().err
    assert "100.0 % of 20 test images, 10 % of all (95 % interval: 83.9 to 100.0 %)" in text
    assert "25.0 % right, each image before it is trained on" in text


def test_the_closing_of_a_run_of_an_older_version(capsys, tmp_path):
    """Its record has no classes and no base of the process; resume=true shows it, too."""
    record = {"metrics": {"test/top1": 0.5}, "memory": {"measured_mb": 10.0, "process_mb": 500.0}}
    show_closing({**record, "time": {"seconds": 60.0}}, tmp_path)
    text = capsys.readouterr().err
    assert line_of(text, "accuracy") == "50.0 %"
    assert line_of(text, "memory") == "measured 10.0 MB in a step, no budget"
    assert line_of(text, "process") == "peak 500 MB"


@pytest.mark.parametrize(("right", "images"), [(0, 7), (5, 10), (20, 20), (307, 359)])
def test_the_interval_is_wilsons(right, images):
    """By the formula of 1927."""
    z, p = 1.959963984540054, right / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    assert accuracy_interval(p, images) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_progress_in_a_file_is_a_line_from_time_to_time(ran, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    steps = ["trainer.limit_train_batches=1.0", "batch_size=4", "epochs=2"]  # three in an epoch
    ran(*FAKE, *steps, "trainer.enable_progress_bar=true")
    lines = [line for line in capsys.readouterr().err.splitlines() if "% done" in line]
    assert [line.split()[0] for line in lines[:6]] == ["17", "33", "50", "67", "83", "100"]
    assert all(line.endswith(" left") for line in lines) and "(epoch 2 of 2)" in lines[5]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0794, "79 ms"), (4.24, "4.2 s"), (45.2, "45 s"), (700, "12 min"), (12_600, "3.5 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def plan(configured, capsys):
    """What a dry run prints: the lines for a person, and the content of its JSON."""

    def planned(*overrides):
        run(configured("dry_run=true", *TINY, "resolution=32", *overrides))
        captured = capsys.readouterr()
        return captured.err, json.loads(captured.out)

    return planned


def test_a_dry_run_on_ones_own_folder(plan, tmp_path):
    """Classes and the number of steps are those of the images; nothing is written."""
    write_split(tmp_path / "images")
    own = ["data=folder", f"data.root={tmp_path}/images", "trainer.limit_train_batches=1.0"]
    text, values = plan(*own, "batch_size=4", "epochs=5", "time_steps=1")
    assert "10 images to train on, 2 to validate, 4 to test; 2 classes" in line_of(text, "data")
    assert (values["num_classes"], values["steps"]) == (2, 5 * (10 // 4))
    assert values["predicted_seconds"] >= values["steps"] * values["step_seconds"] > 0
    assert "10 steps" in line_of(text, "time") and not (tmp_path / "run").exists()
    _, untimed = plan(*own, "time_steps=0")
    assert untimed["step_seconds"] is None and untimed["predicted_seconds"] is None


def test_a_dry_run_without_the_data(plan, tmp_path):
    """It needs none, and downloads none; data that are there must be usable."""
    root = tmp_path / "nothing"
    text, values = plan("data=flowers102", f"data.root={root}", "time_steps=1")
    assert values["num_classes"] == 102 and values["steps"] is None and not root.exists()
    assert "not at hand" in line_of(text, "data") and "to compute a step" in line_of(text, "time")
    with pytest.raises(UserError, match=r"data=folder: data.root=FOLDER is not given; .*data.num_classes=N"):
        plan("data=folder")
    with pytest.raises(UserError, match=r"no such folder.*data.num_classes=N"):
        plan("data=folder", f"data.root={root}")
    write_classes(tmp_path / "one", "ant")
    with pytest.raises(UserError, match=r"one (class|folder) only"):
        plan("data=folder", f"data.root={tmp_path}/one", "data.num_classes=3")


def test_steps_that_may_not_fit_are_not_timed(plan, monkeypatch):
    monkeypatch.setattr(decisions.process, "free_bytes", lambda: 10_000_000)
    _, values = plan("batch_size=256", "resolution=64")
    assert values["predicted_mb"] > 5 and values["step_seconds"] is None


def test_json_is_for_programs(configured, capsys, monkeypatch):
    """A terminal shows it only where that is asked for."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for asked in (False, True):
        run(configured("dry_run=true", "time_steps=0", f"json={asked}", *FAKE))
        assert bool(capsys.readouterr().out) == asked


def test_a_system_that_does_not_report_its_free_memory():
    """As macOS: only memory_budget_mb=auto needs to know."""
    unknown = replace(facts(3), free_bytes=None)
    assert resolve(composed(*FAKE), unknown).budget_mb is None
    with pytest.raises(UserError, match=r"memory_budget_mb=auto: this system does not report"):
        resolve(composed(*FAKE, "memory_budget_mb=auto"), unknown)


def test_a_plan_for_a_gpu_that_is_not_here():
    """A GPU has plain operators, which take more memory."""
    cpu, mps = (experiment(*FAKE, f"trainer.accelerator={kind}") for kind in ("cpu", "mps"))
    assert (cpu.step.plan.compile, mps.step.plan.compile) == ("auto", "off")
    assert mps.step.plan.lean_layers is False and mps.predicted_mb != cpu.predicted_mb


def test_what_apples_gpu_cannot_do(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    check_devices(composed("trainer.accelerator=mps", "trainer.precision=16-mixed"))
    with pytest.raises(UserError, match=r"trainer.precision=64-true: Apple's GPUs compute no 64-bit floats"):
        check_devices(composed("trainer.accelerator=mps", "trainer.precision=64-true"))


def test_what_a_budget_has_set_is_said_and_nothing_else():
    assert experiment(*FAKE, "engine.keep_projection=false").planned == ()
    tight = dict(experiment(*FAKE, "resolution=96", "memory_budget_mb=1.6").planned)
    assert tight["micro_batch"] in (1, 2, 4) and "lean_layers" not in tight


def test_why_the_first_candidate_won():
    best, better = Candidate("bias", 5, 96, 70.0), Candidate("full", None, 96, 71.5)
    text = reason(Weighed(((best, 1_900_000),), (better, 2_040_000), 20), 2.0)
    assert "of 20 candidates it has the highest expectation that fits into 2 MB" in text
    assert "(full, all blocks, 96 px, 71.5 %) takes at least 2.1 MB" in text
    assert "next better" not in reason(Weighed(((best, 1_900_000),), None, 20), 2.0)


def test_multirun_may_stand_anywhere():
    assert _multirun_first(["a=1", "-m", "b=2,3"]) == ["-m", "a=1", "b=2,3"]


def test_tensorboard(ran, tmp_path, monkeypatch):
    """An extra: refused in one line where it is missing."""
    from tinytl.experiment.validation import validate as checks

    with monkeypatch.context() as without:
        without.setattr(checks, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"logger=tensorboard: .*pip install -e '\.\[tensorboard\]'"):
            ran(*FAKE, "logger=tensorboard")
    pytest.importorskip("tensorboard")
    ran(*FAKE, "logger=tensorboard")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))

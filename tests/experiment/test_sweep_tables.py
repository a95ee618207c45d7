"""Test how a sweep names its jobs, sorts them, and marks the front of accuracy against memory."""

import pytest

from tinytl.experiment.sweep.figures import by_memory, in_short, on_the_front
from tinytl.experiment.sweep.progress import VARYING, label, varying
from tinytl.experiment.sweep.table import show


def job(top1, mb, **settings):
    metrics, memory = ({}, {}) if top1 is None else ({"test/top1": top1}, {"measured_mb": mb})
    return {
        "name": "long-name", "settings": {key: str(value) for key, value in settings.items()},
        "metrics": metrics, "memory": memory, "status": "failed" if top1 is None else "finished",
        "reason": None if top1 is not None else "too large", "skipped": False, "seconds": 61.0,
    }  # fmt: skip


JOBS = [
    job(0.80, 9.0, method="full", seed=0),
    job(0.84, 9.0, method="full", seed=1),
    job(0.70, 2.0, method="last", seed=0),
    job(None, None, method="huge", seed=0),
    job(0.83, 5.0, method="tinytl", seed=0),
    job(0.83, 5.1, method="tinytl", seed=1),
    job(0.69, 3.0, method="bias", seed=0),
]


def test_the_front_is_that_of_the_means_over_seeds():
    """A single seed of `full` is better than `tinytl`; its mean is not."""
    marked = {job["settings"]["method"] for job, on in zip(JOBS, on_the_front(JOBS), strict=True) if on}
    assert marked == {"last", "tinytl"}
    assert [job["settings"]["method"] for job in by_memory(JOBS)] == [
        "last", "bias", "tinytl", "tinytl", "full", "full", "huge",
    ]  # fmt: skip


def test_every_data_set_has_its_own_front():
    rows = [job(0.9, 2.0, data="digits"), job(0.3, 4.0, data="cars", lr=1)]
    rows.append(job(0.2, 5.0, data="cars", lr=2))
    assert on_the_front(rows) == [True, True, False]
    assert [row["settings"]["data"] for row in by_memory(rows[::-1])] == ["cars", "cars", "digits"]


def test_jobs_are_named_by_what_differs(monkeypatch):
    settings = [
        {"method": "last", "epochs": "1", "seed": "0"},
        {"method": "bias", "epochs": "1", "seed": "0"},
    ]
    assert varying(settings) == ["method"]
    monkeypatch.setenv(VARYING, "method seed")
    assert label(settings[1], "name") == "method=bias seed=0"
    monkeypatch.setenv(VARYING, "")
    assert label(settings[1], "name") == "name"
    assert in_short(job(0.5, 2.04)) == "top-1 50.0 %, measured 2.0 MB"


@pytest.mark.parametrize("always_json", [False, True])
def test_the_closing_table(capsys, always_json):
    assert not show(JOBS, always_json)
    captured = capsys.readouterr()
    assert captured.out == ""  # results.json files have it
    lines = [line for line in captured.err.splitlines() if line.startswith("│")]
    assert len(lines) == len(JOBS) and "too large" in lines[-1]
    assert [("*" in line, line.split()[1]) for line in lines[:3]] == [
        (True, "last"), (False, "bias"), (True, "tinytl"),
    ]  # fmt: skip
    assert "7 jobs: 6 finished, 1 failed" in captured.err

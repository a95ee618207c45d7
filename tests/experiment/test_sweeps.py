"""Test the files of sweeps, and jobs that are skipped, resumed, killed, or listed before they run."""

import json
import os
import re
import signal
import time

import processes
import pytest
from configuration import composed
from fake_data import FAKE
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from processes import ROOT

from tinytl.data.loading import load_data
from tinytl.errors import UserError
from tinytl.experiment.asked import settings_as_asked
from tinytl.experiment.record import fingerprint
from tinytl.experiment.resolve import data_digest
from tinytl.experiment.sweep import job as jobs
from tinytl.experiment.sweep.grids import points
from tinytl.experiment.sweep.planned import planned
from tinytl.experiment.sweep.progress import SweepProgress
from tinytl.experiment.validation.validate import validate

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
QUICK = [*FAKE, "debug=fast", "trainer.limit_train_batches=1.0", "epochs=4", "resolution=32"]


@pytest.fixture
def sweep(program, tmp_path):
    """Runs `python src/run.py -m ARGUMENTS`; returns how it ended, and the results by name of the run."""

    def run(*arguments, folder="outputs"):
        return program("-m", *arguments, folder=folder), results(tmp_path / folder)

    return run


def results(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/results.json")}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_file(path):
    """Its header's command and number of jobs; its jobs (some of them, here) can work."""
    text = path.read_text()
    assert f"python src/run.py -m +sweeps={path.stem}" in text
    sweeper = composed(f"+sweeps={path.stem}", hydra=True).hydra.sweeper
    jobs = points(sweeper.params, sweeper.grids, [])
    assert all(f"sweep={path.stem}" in job for job in jobs)
    stated = re.findall(r"(\d+) jobs", text)
    assert not stated or len(jobs) == int(stated[0])
    for job in (jobs[0], jobs[len(jobs) // 2], jobs[-1]):
        validate(composed(*job, "data.root=x"))


def test_the_command_line_replaces_what_a_grid_says():
    grids = [{"method": "last,tinytl", "resolution": 224}, {"method": "tinytl", "resolution": 320}]
    assert len(points({"seed": "0,1"}, grids, [])) == 6
    assert points({"seed": "0,1"}, grids, ["seed=7", "resolution=96"]) == [
        ["seed=7", "method=last", "resolution=96"],
        ["seed=7", "method=tinytl", "resolution=96"],
    ]


def test_a_job_found_twice_runs_once():
    """Settings in another order are the same job."""
    grids = [{"method": "last,tinytl", "lr": 1}, {"method": "full", "lr": 2, "warmup": 0.1}, {"warmup": 0.2}]
    assert points({}, grids, ["warmup=0", "method=bias", "lr=3"]) == [["method=bias", "lr=3", "warmup=0"]]


def test_jobs_do_not_share_a_folder():
    assert len(points({}, [{}], ["name=${method.name}", "method=last,bias"])) == 2
    with pytest.raises(HydraException, match="name=x: 2 jobs cannot share"):
        points({}, [{}], ["name=x", "method=last,bias"])


def test_the_order_of_settings_names_no_other_folder():
    def name(*overrides):
        HydraConfig.instance().set_config(composed(*overrides, hydra=True))
        return composed(*overrides).name

    try:
        first = name("lr=1e-3", "warmup=0.1")
        assert first == name("warmup=0.1", "lr=1e-3") == name("lr=2", "warmup=0.1", "lr=1e-3")
        assert first != name("lr=1e-3", "warmup=0.2")
    finally:
        HydraConfig.instance().cfg = None


def test_killed_and_started_again(sweep, tmp_path):
    """kill -9 in the middle, and a damaged results.json; then the same results as without."""
    arguments = [*QUICK, "method=bias,tinytl", "batch_size=2"]
    _, uninterrupted = sweep(*arguments, folder="uninterrupted")
    begun = processes.start(tmp_path, ["-m", *arguments, f"output_dir={tmp_path}/outputs"])
    while begun.said.count("epoch 2/") < 2:  # of the second job
        assert not begun.has_ended, begun.said
        time.sleep(0.01)
    begun.signal(signal.SIGKILL)
    begun.wait()
    time.sleep(0.5)  # its jobs end with it
    statuses = {
        record["config"]["method"]["name"]: record["status"]
        for record in results(tmp_path / "outputs").values()
    }
    assert statuses == {"bias": "finished", "tinytl": "running"}
    (interrupted,) = (tmp_path / "outputs").glob("*-tinytl-gn-*/results.json")
    interrupted.write_text(interrupted.read_text()[:100])
    done, again = sweep(*arguments)
    assert done.returncode == 0 and "goes on" in done.stderr and "skipped" in done.stderr
    for name, record in uninterrupted.items():
        for part in ("status", "metrics", "curves", "params", "fingerprint"):
            assert again[name][part] == record[part], part
        assert again[name]["memory"]["measured_mb"] == record["memory"]["measured_mb"]


def test_resume_keeps_what_other_code_began(sweep, tmp_path):
    """A checkpoint that the sweep would throw away, since the code has changed, is used with resume=true.

    What has no checkpoint yet begins.
    """
    arguments = [*QUICK, "method=last"]
    _, records = sweep(*arguments)
    ((name, whole),) = records.items()
    path = tmp_path / "outputs" / name / "results.json"
    path.write_text(json.dumps({**whole, "status": "interrupted", "fingerprint": "of other code"}))
    done, again = sweep(*arguments, "seed=0,1", "resume=true")
    assert "seed=0: goes on" in done.stderr, done.stderr
    assert again[name]["metrics"] == whole["metrics"]
    assert [record["status"] for record in again.values()] == ["finished", "finished"]


def test_failures_are_recorded_and_do_not_stop_the_rest(sweep):
    """One job that cannot work is kept until retry_failed=true; one that was killed is tried again."""
    arguments = [*QUICK, "epochs=1", "data.loader=fake_data.load_multiclass,fake_data.load_deadly"]
    arguments += ["lite_residual.groups=3,2"]
    done, records = sweep(*arguments)
    assert done.returncode == 1
    outcomes = {
        (r["config"]["data"]["loader"].split("_")[-1], r["config"]["lite_residual"]["groups"]): r["status"]
        for r in records.values()
    }
    assert outcomes == {
        ("multiclass", 2): "finished", ("multiclass", 3): "failed",
        ("deadly", 2): "interrupted", ("deadly", 3): "failed",
    }  # fmt: skip
    reasons = [record["reason"] for record in records.values() if record["status"] != "finished"]
    assert all("killed by SIGKILL" in reason or "does not divide" in reason for reason in reasons)
    done, _ = sweep(*arguments)
    assert done.returncode == 1 and done.stderr.count("skipped") == 3
    done, _ = sweep(*arguments, "lite_residual.groups=3", "retry_failed=true")
    assert done.stderr.count("skipped") == 0 and "2 failed" in done.stderr


def test_plans(sweep):
    """dry_run lists every job with memory and time: that of a run with another seed, or that of its steps."""
    sweep(*QUICK, "method=last")
    done, _ = sweep(*QUICK, "method=last,full", "seed=0,1", "dry_run=true")
    plans = json.loads(done.stdout)
    assert [plan["method"] for plan in plans] == ["last", "last", "full", "full"]
    assert [plan["status"] for plan in plans] == ["finished", *["planned"] * 3]
    assert all(plan["predicted_mb"] > plan["params_mb"] for plan in plans)
    seconds = [plan["predicted_seconds"] for plan in plans]
    assert seconds[:2] == [seconds[0]] * 2 and seconds[2] == seconds[3] >= plans[2]["step_seconds"] * 4
    assert "method=full seed=1: predicted" in done.stderr and all(value > 0 for value in seconds)


FOREIGN = [b"", b"[]", b"\xff\xfe", b'{"status": "finished", "config": {}}']
FOREIGN += [b'{"status": "finished", "config": {"epochs": 0}, "time": {"seconds": 1}}']


def test_results_of_other_programs_do_not_stop_a_plan(tmp_path):
    for number, content in enumerate(FOREIGN):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_bytes(content)
    overrides = (*QUICK, f"output_dir={tmp_path}", "name=x", "time_steps=0")
    HydraConfig.instance().set_config(composed(*overrides, hydra=True))
    try:
        row = planned(composed(*overrides))
    finally:
        HydraConfig.instance().cfg = None
    assert (row["status"], row["predicted_seconds"]) == ("planned", None)


def test_a_sweep_into_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir: .*file cannot be written \(File exists\)"):
        SweepProgress.begin(composed(f"output_dir={tmp_path}/file"), 1)


@pytest.mark.parametrize(
    ("code", "kernel_kills", "status"),
    [(-9, 0, "interrupted"), (-9, 1, "out_of_memory"), (-15, 1, "interrupted"), (3, 1, "failed")],
)
def test_memory_ran_out_only_where_the_kernel_says_so(sweep_of_one, code, kernel_kills, status):
    """A job's process that ends by a signal, while the kernel's count of its kills rises or not."""
    assert sweep_of_one(code, kernel_kills)["status"] == status


@pytest.fixture
def sweep_of_one(tmp_path, monkeypatch):
    """Runs a job whose process ends with an exit code, or is killed by a signal if that is negative."""

    def end(cfg, begin):
        (tmp_path / "x" / "results.json").write_text('{"status": "running", "config": {}}')
        if code_of[0] < 0:
            os.kill(os.getpid(), -code_of[0])
        os._exit(code_of[0])

    code_of = [0]

    def run_with(code, kernel_kills):
        code_of[0] = code
        monkeypatch.setattr(jobs.KernelKills, "happened", lambda self: kernel_kills > 0)
        overrides = (*QUICK, f"output_dir={tmp_path}", "name=x")
        HydraConfig.instance().set_config(composed(*overrides, hydra=True))
        try:
            return jobs.job(composed(*overrides), attempt=end)
        finally:
            HydraConfig.instance().cfg = None

    return run_with


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launcher(sweep, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    done, records = sweep(*QUICK, "method=last,bias,tinytl", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in records.values()] == ["finished"] * 3
    assert "3 of 3 done" in done.stderr or launcher != "joblib"  # submitit's jobs write to files of their own


def test_fingerprint(tmp_path, monkeypatch):
    """It changes with settings, weights and images, not with where and how a run is told of."""
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"one")
    base = [*FAKE, "resolution=32", f"checkpoint={checkpoint}"]

    def mark(*overrides):
        load_data.cache_clear()
        fingerprint._file.cache_clear()
        cfg = composed(*base, *overrides)
        return fingerprint.fingerprint(settings_as_asked(cfg).asked, data_digest(cfg))

    first = mark()
    assert mark("output_dir=elsewhere", "wandb=disabled", "name=other", "data.workers=1") == first
    others = [mark("lr=1"), mark("method=last"), mark("data.loader=fake_data.load_multilabel")]
    checkpoint.write_bytes(b"two")
    assert len({first, *others, mark()}) == 5


def test_a_docstring_is_not_code(tmp_path):
    (one := tmp_path / "one.py").write_text('"""Does."""\ndef f():\n    """It."""\n    return 1  # one\n')
    (two := tmp_path / "two.py").write_text('def f():\n    """That."""\n    return 1\n')
    (three := tmp_path / "three.py").write_text("def f():\n    return 2\n")
    assert fingerprint._meaning(one) == fingerprint._meaning(two) != fingerprint._meaning(three)


def test_code_is_the_same_to_every_python(tmp_path):
    """The golden mark is that of CPython 3.10, 3.11, 3.12 and 3.13; ast.dump gives three."""
    (path := tmp_path / "one.py").write_text(
        "class A(B):\n    async def f(self, x: int = 0) -> str:\n        return f\"{x!r:>4} {self.x['a']}\"\n"
    )
    assert fingerprint._sha(fingerprint._meaning(path).encode()) == "5be29f668e843107"

"""W&B without a network: panels read what runs log; groups, tables, artifacts and agents' sweeps work."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import wandb.errors
from configuration import composed, experiment
from image_folders import write_image
from omegaconf import OmegaConf
from processes import ROOT
from tiny_network import TINY
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

import dashboard
import tinytl.experiment.tracking as tracking_room
from tinytl.experiment.tracking import boards
from tinytl.experiment.tracking import mirror as tracking
from tinytl.experiment.validation.validate import validate
from tinytl.memory.timeline import KINDS

SWEEPS = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
BY_LIGHTNING = {
    *("train/loss_step", "train/loss", "val/top1", "val/balanced_accuracy", "test/balanced_accuracy"),
    "trainer/global_step",
}


class FakeRun:
    """As much of a W&B run as tracking.py uses."""

    def __init__(self, **settings):
        self.settings, self.summary, self.logged = settings, {}, {}
        self.artifacts, self.exit_code = [], None

    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        self.logged |= values

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def finish(self, exit_code=0):
        self.exit_code = exit_code


@pytest.fixture
def printed(monkeypatch, capsys):
    """Runs `python src/dashboard.py ARGUMENTS`; its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dashboard.py", *arguments])
        dashboard.main()
        return capsys.readouterr().out

    return run


def logger_of(run) -> Any:
    return SimpleNamespace(experiment=run)


def summarized(data="digits", accuracy="test/top1"):
    run = FakeRun()
    record = {
        "status": "finished",
        "config": {"data": {"name": data}},
        "metrics": {accuracy: 0.5, "test/weights": "best"},
        "memory": {
            "measured_mb": 3.0,
            "measured_split_mb": dict.fromkeys(KINDS, 0.5),
            "paper_mb": 1.0,
            "cuda_mb": None,
        },
        "params": {"trainable": 7},
        "time": {"seconds": 2.0},
    }
    tracking.summarize(logger_of(run), record)
    return run


def panels(spec):
    """Every panel of a specification, wherever it stands."""
    if isinstance(spec, dict):
        return ([spec] if "viewType" in spec else []) + [p for item in spec.values() for p in panels(item)]
    return [p for item in spec for p in panels(item)] if isinstance(spec, list) else []


def keys(panel):
    """The keys a panel reads: `summary:KEY`, `config:KEY`, or logged ones bare."""
    config = panel["config"]
    axes = [config.get(axis) for axis in ("xAxis", "yAxis")]
    columns = [column["accessor"] for column in config.get("columns", [])]
    grouped = [f"config:{config['groupBy']}"] if "groupBy" in config else []
    return [key for key in (*axes, *columns, *grouped, *config.get("metrics", [])) if key]


def test_panels_read_what_runs_log(printed, monkeypatch, tmp_path):
    spec = json.loads(printed("dry_run=true"))
    logged = set(BY_LIGHTNING)
    for name in (*boards.paper.data_sets(), "digits"):
        run = summarized(name)
        logged |= set(run.logged) | set(run.summary)
    configured = OmegaConf.create(begun(monkeypatch, tmp_path).settings["config"])
    for part in spec.values():
        assert len(panels(part)) > 15
        for key in (key for panel in panels(part) for key in keys(panel)):
            if key.startswith("config:"):
                path = key.removeprefix("config:").replace(".value", "", 1)
                assert OmegaConf.select(configured, path) is not None, key
            else:
                assert key.removeprefix("summary:") in logged, key


def test_what_the_boards_show(printed, tmp_path):
    assert printed("dry_run=true", f"json={tmp_path}/spec.json", "group=table2") == ""
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert json.loads(printed("dry_run=true", "group=table2")) == spec  # no random ids
    workspace, report = spec["workspace"]["section"], spec["report"]
    sections = {section["name"]: section["panels"] for section in workspace["panelBankConfig"]["sections"]}
    frontiers = sections["Accuracy against measured memory"]
    assert [panel["config"]["yAxis"] for panel in frontiers[:2]] == [
        "summary:test/top1",
        "summary:accuracy/flowers102",
    ]
    assert len(frontiers) == 1 + 9 + 1
    assert all(p["config"]["xAxis"] == "summary:memory/measured_mb" for p in frontiers)
    assert all(p["config"]["showMaxYAxisLine"] for p in frontiers)
    assert {f"memory/measured_split_mb/{kind}" for kind in KINDS} == set(
        sections["Memory by kind"][0]["config"]["metrics"]
    )
    grouped = {p["config"]["groupBy"] for p in sections["Method, norm, batch size"]}
    assert grouped == {"chosen.value.method", "chosen.value.norm", "batch_size.value"}
    for runs in (workspace["runSets"][0], report["blocks"][3]["metadata"]["runSets"][0]):
        wanted = {f["key"]["name"]: f["value"] for f in runs["filters"]["filters"]}
        assert wanted == {"state": "finished", "group": "table2"}
    text = "\n".join(block["content"] for block in report["blocks"] if "content" in block)
    assert "| TinyTL-L+B | 320 | 65 | 96.8 |" in text and "measured_mb" in text


@pytest.mark.parametrize(
    "mistake",
    [
        ["entiti=me"],
        ["dry_run=perhaps"],
        ["json=["],
        [],
        ["entity=me", "json=spec.json"],
        ["entity=me", "project=tinytl"],  # no key
    ],
)
def test_mistakes_in_one_line(printed, monkeypatch, capsys, tmp_path, mistake):
    def no_key(*_, **__):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nMore.")

    monkeypatch.setattr(wandb, "Api", no_key)
    with pytest.raises(SystemExit) as stopped:
        printed(*mistake)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1


def test_without_the_extra(printed, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tinytl.experiment.tracking.boards")
    monkeypatch.delattr(tracking_room, "boards")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit):
        printed("dry_run=true")
    assert "pip install -e '.[dashboards]'" in capsys.readouterr().err


def begun(monkeypatch, folder, *overrides) -> Any:
    """Let tracking.mirror begin and end a fake run; return that."""
    made = []
    monkeypatch.setattr(wandb, "init", lambda **settings: made.append(FakeRun(**settings)) or made[-1])
    with tracking.mirror(experiment(f"output_dir={folder}", *TINY, *overrides)):
        pass
    return made[0]


def test_group_and_job_type(monkeypatch, tmp_path):
    run = begun(monkeypatch, tmp_path, "method=bias", "norm=bn")
    assert run.settings["group"] is None and run.settings["job_type"] == "bias"
    assert run.settings["config"]["chosen"] == {
        **{"data": "digits", "model": "tinytl_tiny", "method": "bias", "norm": "bn"},
        "engine": "lean",
    }
    assert run.exit_code == 0
    assert begun(monkeypatch, tmp_path, "sweep=table2").settings["group"] == "table2"


def test_the_paper_beside_a_run():
    assert "paper" not in summarized("digits").logged
    table = summarized("cars").logged["paper"]
    assert table.columns == ["table", "method", "resolution", "train_memory_mb", "top1"]
    assert ["Table 2", "TinyTL-L+B", 320, 65.0, 88.8] in table.data and len(table.data) == 7
    faces = summarized("celeba", accuracy="test/mean_accuracy")
    assert len(faces.logged["paper"].data) == 6 and faces.logged["accuracy/celeba"] == 0.5


def test_summary_is_flat_and_leaves_out_what_was_not_measured():
    run = summarized()
    assert run.logged["memory/measured_split_mb/optimizer"] == 0.5
    assert "memory/cuda_mb" not in run.logged
    assert run.summary == {"test/top1": 0.5, "test/weights": "best", "status": "finished"}
    tracking.summarize(None, {})


@pytest.mark.parametrize("drawn", [True, False])
def test_classes_are_a_table_beside_the_confusion(tmp_path, drawn):
    if drawn:
        write_image(tmp_path / "confusion.png")
    classes = {"ant": {"images": 3, "recall": 2 / 3}, "bee": {"images": 0, "recall": None}}
    tracking.show_classes(logger_of(run := FakeRun()), {"classes": classes}, tmp_path)
    table = run.logged["test/classes"]
    assert table.columns == ["class", "images", "recall"]
    assert table.data == [["ant", 3, 2 / 3], ["bee", 0, None]]
    assert ("test/confusion" in run.logged) == drawn


def test_the_artifact_is_what_was_tested(tmp_path):
    folder = tmp_path / "digits müll=1"
    (folder / "adapter").mkdir(parents=True)
    tracking.upload(logger_of(run := FakeRun()), folder)
    assert run.artifacts == []
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    tracking.upload(logger_of(run), folder)
    (artifact,) = run.artifacts
    assert (artifact.type, artifact.name) == ("model", "digits-m-ll-1")
    assert list(artifact.manifest.entries) == ["adapter_model.safetensors"]


class Failing(FakeRun):
    """A run of W&B that fails at every touch but its end."""

    def log(self, *_, **__):
        raise OSError("no space left")


def test_what_fails_in_wandb_is_one_line_and_nothing_else(monkeypatch, tmp_path, caplog):
    made = []
    monkeypatch.setattr(wandb, "init", lambda **settings: made.append(Failing(**settings)) or made[-1])
    record = {"status": "finished", "config": {"data": {"name": "digits"}}, "metrics": {"test/top1": 0.5}}
    with tracking.mirror(experiment(f"output_dir={tmp_path}", *TINY)) as mirror:
        assert mirror.logger is not None
        mirror.logger.log_metrics({"train/loss": 1.0}, 1)
        mirror.logger.log_metrics({"train/loss": 1.0}, 2)
        mirror.finish(record, tmp_path)
    (line,) = caplog.messages
    assert line.startswith("W&B could not") and "no space left" in line


def test_wandb_that_cannot_begin_is_done_without(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("its service is gone")))
    with tracking.mirror(experiment(f"output_dir={tmp_path}", *TINY)) as mirror:
        assert mirror.logger is None
        mirror.finish({}, tmp_path)
    assert "its service is gone" in caplog.text


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_give_commands_that_the_program_takes(path):
    """Every parameter with every value, as an agent writes it."""
    sweep: Any = load_sweep_config(str(path))
    assert sweep["method"] == "grid" and (ROOT / sweep["program"]).is_file() and sweep["name"] == path.stem
    assert sweep["command"][-2:] == ["${args_no_hyphens}", "wandb=online"]
    assert f"WANDB_RUN_GROUP={path.stem}" in sweep["command"]
    values = {k: v["values"] if "values" in v else [v["value"]] for k, v in sweep["parameters"].items()}
    for index in range(max(map(len, values.values()))):
        chosen = {key: options[index % len(options)] for key, options in values.items()}
        arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
        validate(composed(*arguments["args_no_hyphens"], "wandb=online"))
    assert f"wandb sweep --project tinytl sweeps/wandb/{path.name}" in path.read_text()
    runs = 1
    for options in values.values():
        runs *= len(options)
    assert f"{runs} runs" in path.read_text()

"""Packages import only from lower ones; a method or a data set is added by one file and one YAML."""

import ast

import pytest
from configuration import composed, experiment
from fake_data import FAKE
from processes import ROOT
from tiny_network import TINY

from tinytl.engine import EnginePlan
from tinytl.experiment.asked import engine_plan, lite_residual_shape
from tinytl.experiment.program import run
from tinytl.methods import METHODS, Method
from tinytl.networks.lite_residual import LiteResidualConfig

LIBRARY = ROOT / "src" / "tinytl"
# From the ground up: a room imports from itself and from the floors below.
FLOORS = [
    ["errors"],
    ["system"],
    ["records", "networks", "data", "evaluation"],
    ["methods", "engine"],
    ["weights", "assembly"],
    ["paper"],
    ["memory", "training", "adaptation", "prediction"],
    ["adapters", "planner", "report", "benchmark", "export"],
    ["experiment"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN_EXPERIMENT = {"hydra", "omegaconf", "wandb", "wandb_workspaces"}
FILES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def imported(path):
    """Dotted names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_imports_run_downwards(path):
    room = path.relative_to(LIBRARY).with_suffix("").parts[0]
    for name in imported(path):
        library, *inside = name.split(".")
        assert room == "experiment" or library not in ONLY_IN_EXPERIMENT, name
        if library == "tinytl" and not name.startswith("tinytl.networks.timm_without_wandb"):
            assert inside[0] == room or FLOOR[inside[0]] < FLOOR[room], name


def test_the_package_is_all_that_is_installed():
    """No module of a general name becomes importable where tinytl is installed; programs are a screen."""
    programs = sorted((ROOT / "src").glob("*.py"))
    assert [path.stem for path in programs] == [
        "bench",
        "dashboard",
        "export",
        "predict",
        "pretrain",
        "report",
        "run",
    ]
    assert 'include = ["tinytl*"' in (ROOT / "pyproject.toml").read_text()
    assert all(len(path.read_text().splitlines()) < 120 for path in programs)


@pytest.fixture
def searched(tmp_path):
    """A folder that Hydra searches beside conf/, and the override that makes it so."""
    return tmp_path / "conf", f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


def test_a_method_is_an_entry_and_a_yaml(ran, searched, monkeypatch):
    folder, search = searched
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "shifts.yaml").write_text("name: shifts\n")
    rule = Method(lambda role: role.part == "head" or role.tensor == "bias", "shifts and the classifier")
    monkeypatch.setitem(METHODS, "shifts", rule)
    shifts, bias = ran(search, "method=shifts", *FAKE), ran("method=bias", *FAKE)
    assert shifts["status"] == "finished" and shifts["config"]["method"] == {"name": "shifts"}
    assert (shifts["params"], shifts["metrics"]) == (bias["params"], bias["metrics"])


def test_a_data_set_is_a_file_and_a_yaml(ran, searched, tmp_path, monkeypatch):
    folder, search = searched
    (folder / "data").mkdir(parents=True)
    settings = ["name: noise", "loader: noise.load", "root: data", "resolution: 32", "epochs: 1", "lr: 1e-3"]
    (folder / "data" / "noise.yaml").write_text("\n".join([*settings, "workers: 0"]))
    (tmp_path / "noise.py").write_text("import fake_data\n\nload = fake_data.load_multiclass\n")
    monkeypatch.syspath_prepend(tmp_path)
    results = ran(search, "data=noise", *TINY)
    assert results["status"] == "finished" and results["data"]["images"] == {"train": 16, "test": 6}
    assert results["config"]["data"]["name"] == "noise" and results["config"]["lr"] == 1e-3


def test_the_same_configuration_gives_the_same_experiment():
    """Also where a memory budget decides."""
    budget = ["memory_budget_mb=2", *FAKE, "resolution=64"]
    first, second = (experiment(*budget, "method=auto") for _ in range(2))
    assert first == second and first.predicted_mb is not None and first.predicted_mb <= 2
    assert first.settings.asked["method.name"] == "auto" and first.config["method"]["name"] in METHODS
    assert experiment(*budget, "method=tinytl") != first


def test_a_configuration_is_read_only_once_it_is_validated(configured, capsys):
    cfg = configured("dry_run=true", *FAKE)
    run(cfg)
    with pytest.raises(Exception, match="read-only"):
        cfg.seed = 1


def test_conf_restates_the_defaults_of_the_library():
    cfg = composed()
    assert engine_plan(cfg) == EnginePlan()
    assert lite_residual_shape(cfg) == LiteResidualConfig()

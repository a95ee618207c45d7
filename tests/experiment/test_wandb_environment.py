"""Test that the variables of W&B's environment are obeyed, and that a missing login is told before work."""

import pytest
from configuration import composed
from fake_data import FAKE

from tinytl.errors import UserError
from tinytl.experiment.program import run
from tinytl.experiment.tracking.login import check_login
from tinytl.experiment.tracking.mirror import mirror
from tinytl.experiment.validation.validate import validate

VARIABLES = (
    "MODE",
    "DISABLED",
    "API_KEY",
    "IDENTITY_TOKEN_FILE",
    "BASE_URL",
    "PROJECT",
    "ENTITY",
    "CONFIG_DIR",
)


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    """A user who has never used W&B."""
    for name in VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("variables", "overrides", "mode"),
    [
        ({}, [], "offline"),
        ({"WANDB_MODE": "online"}, [], "online"),
        ({"WANDB_MODE": "dryrun"}, [], "offline"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, [], "disabled"),
        ({"WANDB_MODE": "online"}, ["wandb=offline"], "offline"),
        ({"WANDB_MODE": "disabled"}, ["wandb.mode=online"], "online"),
        ({"WANDB_MODE": "online"}, ["debug=fast"], "disabled"),
    ],
)
def test_the_mode(monkeypatch, variables, overrides, mode):
    """The environment's, unless the command line says otherwise."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert composed(*overrides).wandb.mode == mode


def test_project_and_team(monkeypatch):
    assert (composed().wandb.project, composed().wandb.entity) == ("tinytl", None)
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    for option in ("environment", "online", "offline"):
        cfg = composed(f"wandb={option}")
        assert (cfg.wandb.project, cfg.wandb.entity) == ("birds", "team")
    assert composed("wandb.project=mine").wandb.project == "mine"
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(UserError, match=r"wandb.mode=on: must be one of"):
        validate(composed())


def test_what_else_the_environment_names(monkeypatch, tmp_path):
    """W&B reads its variables only where it is given nothing else; tags are added."""
    import wandb
    from configuration import experiment

    begun = {}
    monkeypatch.setattr(wandb, "init", lambda **given: begun.update(given))
    for name, value in {"NAME": "n", "RUN_GROUP": "g", "TAGS": "a, b", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with mirror(experiment(*FAKE, f"output_dir={tmp_path}", "wandb.tags=[c]")):
        pass
    assert begun["name"] is begun["group"] is begun["dir"] is None and begun["id"]
    assert begun["tags"][-3:] == ["c", "a", "b"]


def test_online_without_a_login_is_refused_before_work(configured, tmp_path):
    with pytest.raises(UserError, match=r"wandb.mode=online: No API key configured; `wandb login`"):
        run(configured(*FAKE, "wandb.mode=online"))
    assert not (tmp_path / "run").exists()
    run(configured(*FAKE, "wandb.mode=online", "dry_run=true", "time_steps=0"))  # sends nothing


@pytest.mark.parametrize(
    ("netrc", "variables", "known"),
    [
        ("machine api.wandb.ai login user password k\n", {}, True),
        ("machine example.org login user password k\n", {}, False),
        ("machine api.wandb.ai login user password k\n", {"WANDB_BASE_URL": "https://w.example.org"}, False),
        ("machine w.example.org login user password k\n", {"WANDB_BASE_URL": "https://w.example.org"}, True),
        ("not such a file", {}, True),  # W&B says more of it
        ("", {"WANDB_API_KEY": "k"}, True),
    ],
)
def test_logins(monkeypatch, tmp_path, netrc, variables, known):
    (tmp_path / "netrc").write_text(netrc)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if known:
        check_login("online")
    else:
        with pytest.raises(UserError, match="No API key"):
            check_login("online")


def test_a_server_of_ones_own(tmp_path):
    """As `wandb login --host` stores it."""
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://w.example.org\n")
    (tmp_path / "netrc").write_text("machine w.example.org login user password k\n")
    check_login("online")

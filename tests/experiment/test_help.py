"""Every program answers --help, and the help lists every knob and option."""

import pytest
from processes import ROOT, ended, fresh, start

from tinytl.experiment.schema import CONF
from tinytl.experiment.terminal.error_lines import known_keys
from tinytl.experiment.terminal.help import GROUPS, help_text, knobs_of


def test_every_knob_has_a_default_and_a_meaning():
    knobs = knobs_of("pretrain")
    groups = {key.rpartition(".")[0] for key in known_keys()}
    keys = {key for key in known_keys() if key not in groups}
    assert keys - set(knobs) == set()
    assert [key for key in keys if not knobs[key][1]] == []


def test_every_option_of_every_group_is_listed():
    text = help_text("run", "config")
    for group in GROUPS:
        for path in (CONF / group).glob("*.yaml"):
            assert f"{group}={path.stem}" in text


@pytest.mark.parametrize("name", ["run", "pretrain"])
def test_programs_that_answer_before_slow_imports(tmp_path, name):
    done = fresh(tmp_path, str(ROOT / "src" / f"{name}.py"), "--help")
    assert done.returncode == 0 and not done.stderr and f"src/{name}.py" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bench", "report", "dashboard", "predict", "export"])
def test_the_other_programs_answer(tmp_path, name):
    """What their imports say and write is seen by test_nothing_but_locks_needs_posix."""
    done = ended(start(tmp_path / "here", ["--help"], f"{name}.py"))
    assert done.returncode == 0 and not done.stderr and f"src/{name}.py" in done.stdout
    assert not list((tmp_path / "here").iterdir())

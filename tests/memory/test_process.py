"""Memory as the operating system reports it."""

import pytest

from tinytl.memory import process


@pytest.fixture
def control_group(tmp_path, monkeypatch):
    """A control group of 100 MB, of which 90 MB are used, 70 MB of them by files that were read."""
    content = {"memory.max": "100000000", "memory.current": "90000000"}
    content["memory.stat"] = "anon 15000000\nfile 75000000\nactive_file 5000000\ninactive_file 70000000"
    for name, text in content.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(process, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(process.torch.cuda, "is_available", lambda: False)
    return tmp_path


def test_what_the_kernel_can_drop_at_once_is_free(control_group):
    """Reading the images of a data set must not leave a smaller budget (memory_budget_mb=auto)."""
    assert process.free_bytes() == 80_000_000
    assert process.total_bytes() == 100_000_000


def test_a_control_group_without_a_limit(control_group):
    (control_group / "memory.max").write_text("max\n")
    free, total = process.free_bytes(), process.total_bytes()
    assert free is not None and free > 80_000_000
    assert total is not None and total > 100_000_000

"""A run is out of memory if the kernel or an allocator said so, and only then."""

import pytest
import torch

from tinytl.memory import out_of_memory
from tinytl.memory.out_of_memory import KernelKills, is_out_of_memory


def test_the_allocators_words():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(ValueError("out of memory.jpg: not a readable image"))
    assert not is_out_of_memory(RuntimeError("DataLoader worker is killed by signal: Killed."))


def test_the_kernels_count(tmp_path, monkeypatch):
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    count = out_of_memory._count
    monkeypatch.setattr(out_of_memory, "_count", lambda _: count(tmp_path / "vmstat"))
    kills = KernelKills()
    assert not kills.happened()
    (tmp_path / "vmstat").write_text("nr_free_pages 2\noom_kill 4\n")
    assert kills.happened()

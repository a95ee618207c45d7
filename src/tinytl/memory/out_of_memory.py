"""Tell whether memory ran out, by what the kernel or an allocator reports."""

import re
from pathlib import Path

import torch

# The messages of PyTorch, on the CPU and on GPUs, and of the system (ENOMEM).
WORDS = re.compile("not enough memory|can(no|')t allocate memory|out of memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and WORDS.search(str(error)) is not None


class KernelKills:
    """Tells whether the kernel has killed a process for want of memory since this object was made."""

    def __init__(self) -> None:
        self._before = _killed_so_far()

    def happened(self) -> bool:
        """Whether the kernel has killed one, on this machine or in this process's control group."""
        return any(now > before for now, before in zip(_killed_so_far(), self._before, strict=True))


def _killed_so_far() -> tuple[int, int]:
    """Kills on the machine and in the control group; 0 where the system does not count them."""
    group = Path("/sys/fs/cgroup")
    membership = Path("/proc/self/cgroup")
    if membership.exists():
        group = group / membership.read_text().strip().rpartition(":")[2].lstrip("/")
    return _count(Path("/proc/vmstat")), _count(group / "memory.events")


def _count(path: Path) -> int:
    """The kernel's kills by a file with lines of `name value`; 0 where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for name, value in lines if name == "oom_kill"), 0)

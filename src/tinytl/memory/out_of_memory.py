"""Whether memory ran out: said only where the kernel or an allocator said so."""

import re
from pathlib import Path

import torch

# PyTorch's words for the CPU and for GPUs, and the system's (ENOMEM)
WORDS = re.compile("not enough memory|can(no|')t allocate memory|out of memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and WORDS.search(str(error)) is not None


class KernelKills:
    """Counts the processes that the kernel kills for want of memory, from the object's creation on."""

    def __init__(self) -> None:
        self._before = _killed_so_far()

    def happened(self) -> bool:
        """Whether there has been one, on this machine or in this process's control group."""
        return any(now > before for now, before in zip(_killed_so_far(), self._before, strict=True))


def _killed_so_far() -> tuple[int, int]:
    """Counts of the machine and of the control group; 0 where the system does not count."""
    group = Path("/sys/fs/cgroup")
    own = Path("/proc/self/cgroup")
    if own.exists():
        group = group / own.read_text().strip().rpartition(":")[2].lstrip("/")
    return _count(Path("/proc/vmstat")), _count(group / "memory.events")


def _count(path: Path) -> int:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for name, value in lines if name == "oom_kill"), 0)

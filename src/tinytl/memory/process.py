"""Memory as the operating system and the CUDA allocator report it."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

CONTROL_GROUP = Path("/sys/fs/cgroup")  # that of this process, where it runs in a container

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None


def reset_peaks() -> None:
    """Forget earlier peaks where the system allows it, because one process may run many jobs."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        # "5" resets the peak; where that is forbidden, the peak stays that of the process's whole life
        with suppress(OSError):
            clear.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_process_bytes() -> int:
    """Peak resident set size of the whole process since `reset_peaks`; 0 where the system reports none."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_bytes() -> int:
    """Resident set size now, or its peak so far where the system does not report it."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_process_bytes()


def total_bytes() -> int | None:
    """Total memory of the GPU if there is one, else of the machine or its control group; None: unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or it does not report it
        return None
    limit = _limit_of_control_group()
    return total if limit is None else min(total, limit)


def free_bytes() -> int | None:
    """Free memory of the GPU if there is one, else of the machine or its control group; None: unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free, limit = int(line.split()[1]) * 1024, _limit_of_control_group()
    return free if limit is None else min(free, limit - _used_by_control_group())


def _limit_of_control_group() -> int | None:
    """The bytes that the control group may use; None without a limit."""
    limit = CONTROL_GROUP / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    return None if text == "max" else int(text)


def _used_by_control_group() -> int:
    """The bytes that the control group uses and the kernel cannot simply drop.

    While there is room, the kernel keeps what was read of files in memory (`inactive_file`). It counts as
    used, but is dropped as soon as memory is asked for; the machine's MemAvailable counts it as free, too.
    """
    used = int((CONTROL_GROUP / "memory.current").read_text())
    statistics = CONTROL_GROUP / "memory.stat"
    lines = [line.split() for line in statistics.read_text().splitlines()] if statistics.exists() else []
    droppable = next((int(value) for name, value in lines if name == "inactive_file"), 0)
    return max(0, used - droppable)


def peak_cuda_bytes() -> int | None:
    """Peak bytes allocated on the current CUDA device since `reset_peaks`; None without CUDA."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None

"""Memory as the operating system and the CUDA allocator report it."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

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
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip() != "max":
        total = min(total, int(limit.read_text()))
    return total


def free_bytes() -> int | None:
    """Free memory of the GPU if there is one, else of the machine or its control group; None: unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return None
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024
    if limit.exists() and limit.read_text().strip() != "max":
        used = int(limit.with_name("memory.current").read_text())
        free = min(free, int(limit.read_text()) - used)
    return free


def peak_cuda_bytes() -> int | None:
    """Peak bytes allocated on the current CUDA device since `reset_peaks`; None without CUDA."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None

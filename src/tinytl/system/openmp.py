"""How torch's threads wait for each other; to be imported before torch.

On a quiet machine they do so quickest by looking again and again (OpenMP's default). Where other processes
want the cores too, threads that wait then take them from those that work, and a step can take ten times as
long; there they had better sleep, which costs some 60 % on a quiet machine.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")  # Linux: how long processes have had to wait for a core
BUSY_PERCENT = 10.0  # of the last ten seconds


def is_busy(pressure: Path = PRESSURE) -> bool:
    """Whether processes have had to wait for a core just now; False where the system does not say."""
    with suppress(OSError):
        found = re.search(r"some avg10=([\d.]+)", pressure.read_text())
        return found is not None and float(found[1]) > BUSY_PERCENT
    return False


if "GOMP_SPINCOUNT" not in os.environ and is_busy():
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

"""Choose how torch's threads wait for each other; this module must be imported before torch.

On a quiet machine busy waiting, OpenMP's default, is fastest. Where other processes need the cores too, the
waiting threads keep them from the working ones, and a step can take ten times as long. There the threads
should sleep while they wait; on a quiet machine that makes a step some 60 % longer.
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
        average = re.search(r"some avg10=([\d.]+)", pressure.read_text())
        return average is not None and float(average[1]) > BUSY_PERCENT
    return False


if "GOMP_SPINCOUNT" not in os.environ and is_busy():
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

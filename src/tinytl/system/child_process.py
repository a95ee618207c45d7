"""Processes that this one starts must not outlive it."""

import ctypes
import os
import signal
import sys

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent(parent: int | None = None) -> None:
    """Let the system kill this process when its parent ends, however it ends (on Linux).

    `parent` is the process number that the parent is known to have; if it has ended already, so does this
    process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)

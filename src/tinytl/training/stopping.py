"""Let signals stop a training: its state is saved first, then the program ends."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# SIGTERM comes from the system, a scheduler or `kill`, SIGINT from Ctrl-C, SIGHUP from a closed terminal.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
SAME_PRESS_SECONDS = 1.0  # a terminal and a parent process may both pass on one Ctrl-C
SAVING = "saves its state and stops; a second signal stops at once, without saving"


class Stopped(BaseException):
    """The program was asked to stop by the signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by the signal."""
        return 128 + self.signum


class StopRequests:
    """A context in which stopping signals raise `Stopped`.

    They raise at once, or, while `deferred` is set, at the next `raise_if_requested()`. A training sets it
    because its state can only be saved between steps. A second signal always raises at once.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.requested: int | None = None  # the signal
        self._requested_at = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            # A process that ignores SIGHUP (nohup) or SIGINT (a shell's background job) still ignores it.
            handlers = {signum: signal.getsignal(signum) for signum in STOPPING}
            self._before = {s: handler for s, handler in handlers.items() if handler != signal.SIG_IGN}
        self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def install(self) -> None:
        """Install the handlers, again if a library has replaced them."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def raise_if_requested(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def cause_of(self, error: BaseException) -> BaseException:
        """Return `Stopped` for any error that follows a stopping signal, otherwise the error itself."""
        if self.requested is None or isinstance(error, Stopped):
            return error
        return Stopped(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal, and raise Stopped unless it is the first one and deferred."""
        if os.getpid() != self._process:  # a forked process, before it has its own handlers
            if signum != signal.SIGINT:  # Ctrl-C also reaches the parent, which ends this process
                os._exit(128 + signum)
            return
        now = time.monotonic()
        first = self.requested is None
        if not first and now - self._requested_at < SAME_PRESS_SECONDS:
            return
        if first:
            self.requested, self._requested_at = signum, now
        if not (first and self.deferred):
            raise Stopped(self.requested or signum)
        os.write(2, f"{signal.Signals(signum).name}: {SAVING}\n".encode())

"""Start the programs in processes of their own, quickly, because a server has loaded their libraries.

The server is Python's own (the start method `forkserver`). What must be seen in a fresh interpreter is
started as one (`fresh`).
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))  # this checkout's programs, whatever is installed
HANGS = 1800.0  # seconds: against programs that hang, not slow ones


@dataclass
class Program:
    """`python src/NAME.py ARGUMENTS` in a folder; what it says is in files beside the folder."""

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float = HANGS) -> int:
        """Its exit code as a shell reports it. Raises TimeoutError where it does not end."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"{self.log} did not end")
        return code if code >= 0 else 128 - code

    def says(self, text: str, seconds: float = 120.0) -> None:
        """Wait until it has said this. Raises TimeoutError where it does not, or has ended."""
        end = time.monotonic() + seconds
        while text not in self.said:
            if time.monotonic() > end or self.has_ended:
                raise TimeoutError(f"{self.log} does not say {text!r}: {self.said[-2000:]}")
            time.sleep(0.01)

    @property
    def number(self) -> int:
        """Its process's."""
        return self.process.pid or 0

    @property
    def has_ended(self) -> bool:
        """Whether it has ended; its exit code can still be asked for."""
        return not self.process.is_alive()

    def signal(self, signum: int) -> None:
        """Send a signal to it alone; it may have ended."""
        with suppress(ProcessLookupError):
            os.kill(self.number, signum)

    @property
    def stdout(self) -> str:
        """Its standard output so far."""
        return _output(self.log).read_text(errors="replace")

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace")


def start(
    folder: Path,
    arguments: list[str],
    script: str = "run.py",
    log: str = "log",
    environment: dict[str, str] | None = None,
) -> Program:
    """Start a program in a folder, with environment variables of its own beside those of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.{log}"
    path.touch()
    _output(path).touch()
    variables = {**os.environ, **(environment or {})}
    process = server().Process(target=_become, args=(folder, path, script, arguments, variables))
    process.start()
    return Program(process, path)


def server() -> ForkServerContext:
    """The start method of processes in which the programs' libraries are loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loaded_programs"])
    with _modules_of_this_checkout():
        forkserver.ensure_running()
    return context


def ended(program: Program) -> subprocess.CompletedProcess[str]:
    """How a program has ended, when it has."""
    code = program.wait()
    return subprocess.CompletedProcess(program.log, code, program.stdout, program.said)


def fresh(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """How `python COMMAND` ends in an interpreter that has loaded nothing."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=HANGS, cwd=folder,
        env={**os.environ, **environment},
    )  # fmt: skip


@contextmanager
def _modules_of_this_checkout() -> Iterator[None]:
    """The server finds the modules that it loads by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT / "tests")
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _output(log: Path) -> Path:
    return log.with_name(f"{log.name}.out")


def _become(folder: Path, log: Path, script: str, arguments: list[str], variables: dict[str, str]) -> None:
    """End as the program would end."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None  # as TMPDIR says now
        multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # the system's own
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
        for number, path in ((1, _output(log)), (2, log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = [str(ROOT / "src" / script), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 128 + signal.SIGINT  # as Python itself ends
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""The program in processes of its own, forked from one that has its libraries loaded: they begin at once."""

import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # this checkout's, whatever is installed

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import torch

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # a process that has run several threads cannot be forked


@dataclass
class Program:
    """`python src/NAME.py ARGUMENTS` in a folder; what it says is in a file beside the folder."""

    number: int
    log: Path

    def wait(self, seconds: float = 1800.0) -> int:
        """Its exit code as a shell reports it. Raises TimeoutError where it does not end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found, status = os.waitpid(self.number, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.005)
        self.signal(signal.SIGKILL)
        os.waitpid(self.number, 0)
        raise TimeoutError(f"{self.log} did not end")

    def says(self, text: str, seconds: float = 120.0) -> None:
        """Wait until it has said this. Raises TimeoutError where it does not, or has ended."""
        end = time.monotonic() + seconds
        while text not in self.said:
            if time.monotonic() > end or self.has_ended:
                raise TimeoutError(f"{self.log} does not say {text!r}: {self.said[-2000:]}")
            time.sleep(0.01)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended; its exit code can still be asked for."""
        state = os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return state is not None

    def signal(self, signum: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.number, signum)

    @property
    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace")


def start(
    folder: Path,
    arguments: list[str],
    script: str = "run.py",
    log: str = "log",
    environment: dict[str, str] | None = None,
) -> Program:
    """Start the program in a folder, with environment variables of its own beside those of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.{log}"
    path.touch()
    number = os.fork()
    if number == 0:
        os.environ |= environment or {}
        tempfile.tempdir = None  # as TMPDIR says now
        _become(folder, path, script, arguments)
    return Program(number, path)


def _become(folder: Path, log: Path, script: str, arguments: list[str]) -> None:
    """End as the program would end."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = [str(ROOT / "src" / script), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""A case: a short function that does something to runs, and says what happened or raises Fault."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import processes
from fake_data import FAKE

SMALL = [*FAKE, "wandb=disabled", "trainer.enable_progress_bar=false", "output_dir=outputs"]
LONG = [*SMALL, "epochs=1000", "method=last"]  # goes on until it is stopped


class Fault(Exception):
    """What must not happen has happened."""


class Skipped(Exception):
    """The case cannot be tried here; the message says why."""


@dataclass
class Options:
    """The command line of tests/faults.py."""

    only: str = ""  # cases whose name or module contains this
    jobs: int = 100  # of the sweep whose memory is watched
    steps: int = 8000  # of the training whose memory is watched; far fewer see its beginning alone


@dataclass(frozen=True)
class Place:
    """Where a case takes place: an empty folder; and the options."""

    folder: Path
    options: Options
    started: list[processes.Program] = field(default_factory=list)

    def start(
        self, *arguments: str, script: str = "run.py", log: str = "log", **environment: str
    ) -> processes.Program:
        """Start `python src/run.py ARGUMENTS` in the folder."""
        program = processes.start(self.folder / "work", [*arguments], script, log, environment)
        self.started.append(program)
        return program

    def end(self) -> None:
        """Kill what a case that went wrong has left running."""
        for program in self.started:
            with suppress(ChildProcessError):  # it has ended, and has been waited for
                if not program.has_ended:
                    program.signal(signal.SIGKILL)
                program.wait()

    def run(self, *arguments: str, log: str = "log", **environment: str) -> tuple[int, str]:
        """Run it to its end: (exit code, what it said)."""
        program = self.start(*arguments, log=log, **environment)
        code = program.wait()
        expect("Traceback" not in program.said, f"a traceback: {program.said[-3000:]}")
        return code, program.said

    @property
    def outputs(self) -> Path:
        """What runs write into."""
        return self.folder / "work" / "outputs"

    def record(self, name: str = "x") -> dict[str, Any]:
        """The results.json of a run."""
        return json.loads((self.outputs / name / "results.json").read_text())


Run = Callable[[Place], str]


@dataclass(frozen=True)
class Case:
    """`rows` are the numbers of docs/reliability.md that it is about."""

    rows: str
    name: str
    run: Run


CASES: list[Case] = []


def case(rows: str, name: str, root: bool = False, linux: bool = True) -> Callable[[Run], Run]:
    """Register a case; `root`: it mounts file systems, `linux`: it reads /proc."""

    def register(run: Run) -> Run:
        @wraps(run)
        def where_possible(place: Place) -> str:
            if (linux or root) and sys.platform != "linux":
                raise Skipped("needs Linux")
            if root and os.geteuid() != 0:
                raise Skipped("needs root")
            return run(place)

        CASES.append(Case(rows, name, where_possible))
        return run

    return register


def expect(condition: bool, otherwise: str) -> None:
    """Raise Fault where a condition does not hold."""
    if not condition:
        raise Fault(otherwise)


def one_error(code: int, said: str, part: str) -> str:
    """Expect exit code 1 and one line that says what is wrong; return that line."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    expect(code == 1 and len(lines) == 1 and part in lines[0], f"{code}: {said[-2000:]}")
    return lines[0]


def line_with(said: str, part: str) -> str:
    """The one line that holds a text."""
    lines = [line for line in said.splitlines() if part in line]
    expect(len(lines) == 1, f"{len(lines)} lines with {part!r}: {said[-2000:]}")
    return lines[0]

"""Where a program writes: lines for a person on stderr, JSON for programs on stdout."""

import json
import sys
from typing import Any

from rich.console import Console

console = Console(stderr=True)  # quiet in processes whose lines nobody asked for
LABEL = 10  # characters of the name that begins a line


def line(label: str, text: str) -> None:
    """Print a line on stderr that begins with what it is about; the terminal wraps it, nothing is cut."""
    console.print(f"{label:{LABEL}}{text}", highlight=False, markup=False, soft_wrap=True)


def for_programs(content: Any, always: bool) -> None:
    """Print JSON in one line on stdout where that is read by a program, or anywhere if `always`."""
    sys.stderr.flush()
    if always or not sys.stdout.isatty():
        print(json.dumps(content), flush=True)

"""Cause faults around runs (full disks, kills, damaged files) and check what follows.

    python tests/faults.py [only=TEXT] [jobs=100] [steps=8000]

Signals, kills, full and read-only disks, two runs at once, W&B and compilers that fail, damaged files, and
memory over long runs. Prints a row per case: which rows of docs/reliability.md it is about, what was done,
what happened. Exits with 1 if any of it must not happen. Mounting file systems needs root.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import processes  # noqa: F401  (first: it makes the programs importable)

# isort: split
from fault_cases import disks, folders, memory, mirrors, signals, surroundings  # noqa: F401  (they register)
from fault_cases.registry import CASES, Case, Fault, Options, Place, Skipped

from tinytl.experiment.terminal.options import key_values


def main() -> int:
    """Run the cases, one after the other; return the exit code."""
    options = key_values(sys.argv[1:], Options)
    cases = [case for case in CASES if options.only in f"{case.name} {case.run.__module__}"]
    print(f"{'rows':8}{'':6} what was done, and what happened")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [tried(case, Place(Path(folder) / str(n), options)) for n, case in enumerate(cases)]
    print(f"{len(outcomes)} cases: " + ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes))))
    return 1 if "FAULT" in outcomes else 0


def tried(case: Case, place: Place) -> str:
    """Run one case, and print its row; return `ok`, `FAULT` or `skipped`."""
    place.folder.mkdir(parents=True)
    begun = time.monotonic()
    try:
        outcome, happened = "ok", case.run(place)
    except Skipped as reason:
        outcome, happened = "skipped", str(reason)
    except (Fault, TimeoutError) as fault:
        outcome, happened = "FAULT", str(fault)
    except Exception as error:  # the case could not be tried to its end, which is a fault too
        outcome, happened = "FAULT", f"{type(error).__name__}: {error}"
    place.end()
    shutil.rmtree(place.folder, ignore_errors=True)
    seconds = time.monotonic() - begun
    print(f"{case.rows:8}{outcome:8}{case.name}: {happened} ({seconds:.0f} s)", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())

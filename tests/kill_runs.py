"""Kill runs at random, resume them, and compare them with runs that were never stopped.

    python tests/kill_runs.py n=200 [seed=0] [only=stream] [elsewhere=/dev/shm]

Single runs, streams and sweeps, both engines, micro-batches, data loading in 0 and 2 processes, W&B offline;
SIGKILL, SIGTERM and SIGINT at any time, SIGKILL while files are being written too; a fifth on another file
system. Some are killed again when they go on. Afterwards metrics, curves and tested weights must be those of
the uninterrupted run, bit for bit; no file may be torn; exit codes must be those of the signals; and no more
work may be lost than `checkpoint_every_minutes` allows. Prints a table, and exits with 1 if anything differs.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import processes  # first: it makes the programs importable

# isort: split
from safetensors.torch import load_file
from tiny_network import TINY

from tinytl.experiment.terminal.options import key_values
from tinytl.system.files import UNFINISHED
from tinytl.training.checkpoints import DamagedCheckpoint, read_checkpoint

EVERY_MINUTES = 0.01
SLOW = 5.0  # seconds beyond it for a step and a validation, on a busy machine
COMMON = [
    *TINY,
    *("resolution=32", "data.workers=0", f"checkpoint_every_minutes={EVERY_MINUTES}", "wandb=disabled"),
    *("epochs=3", "trainer.limit_train_batches=60", "trainer.limit_val_batches=1"),
    *("trainer.limit_test_batches=1", "trainer.enable_progress_bar=false"),
]
STREAM = ["data.stream=true", "data.val_fraction=0", "epochs=1", "trainer.limit_train_batches=300"]
CASES = {
    "lean": [],
    "lean, 2 workers": ["data.workers=2"],
    "stock": ["engine=stock", "method=full"],
    "stock, 2 workers": ["engine=stock", "norm=bn", "data.workers=2"],
    "micro-batches": ["engine.micro_batch=2", "classifier=class_means", "warmup=0.2"],
    "micro-batches, 2 workers": ["engine.micro_batch=4", "norm=bn_frozen", "data.workers=2"],
    "stream": STREAM,
    "stream, 2 workers": [*STREAM, "data.workers=2"],
    "drifting stream": [*STREAM, "data.drift=true", "engine=stock"],
    "W&B offline": ["wandb=offline"],
    "sweep": ["sweep=kills", "method=last,tinytl"],
    "sweep, 2 workers": ["sweep=kills", "method=tinytl", "data.workers=2", "engine=lean,stock"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Options:
    """The command line."""

    n: int = 200
    seed: int = 0
    only: str = ""  # cases whose name contains this
    elsewhere: str = "/dev/shm"  # a folder on another file system


@dataclass
class Tally:
    """What has been seen of one case."""

    kills: int = 0
    ended_before: int = 0  # the signal came too late
    resumed: int = 0
    most_lost_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Run all cases in turn until there have been n kills."""
    options = key_values(sys.argv[1:], Options)
    chance = random.Random(options.seed)
    cases = {name: settings for name, settings in CASES.items() if options.only in name}
    tallies = {name: Tally() for name in cases}
    known = dict.fromkeys(cases, 0)  # how many of its faults have been told
    with (
        tempfile.TemporaryDirectory() as here,
        tempfile.TemporaryDirectory(dir=options.elsewhere) as elsewhere,
    ):
        whole = {
            name: uninterrupted(Path(here) / "whole" / name, settings) for name, settings in cases.items()
        }
        for number in itertools.count():
            name = list(cases)[number % len(cases)]
            root = Path(elsewhere if number % 5 == 4 else here) / str(number)
            kill_and_go_on(root, cases[name], whole[name], tallies[name], chance)
            shutil.rmtree(root)
            for fault in tallies[name].faults[known[name] :]:
                print(f"\n{name}: {fault}", file=sys.stderr)
            known[name] = len(tallies[name].faults)
            kills, faults = (
                sum(t.kills for t in tallies.values()),
                sum(len(t.faults) for t in tallies.values()),
            )
            print(f"\r{kills} of {options.n} kills, {faults} faults", end="", file=sys.stderr, flush=True)
            if kills >= options.n:
                break
    return show(tallies)


@dataclass
class Whole:
    """A run that was never stopped."""

    seconds: float
    results: dict[str, Any]


def uninterrupted(folder: Path, settings: list[str]) -> Whole:
    """Run a case to its end."""
    begun = time.monotonic()
    program = processes.start(folder, arguments(settings))
    if code := program.wait():
        sys.exit(f"the uninterrupted run ended with {code}:\n{program.said}")
    return Whole(time.monotonic() - begun, results(folder))


def arguments(settings: list[str], *more: str) -> list[str]:
    """The command line of a case."""
    how = "-m" if "sweep=kills" in settings else "name=x"
    return [how, *COMMON, *settings, "output_dir=outputs", *more]


def results(folder: Path) -> dict[str, Any]:
    """By run: what must not differ, and the tested weights."""
    found = {}
    for path in sorted((folder / "outputs").glob("*/results.json")):
        record = json.loads(path.read_text())
        weights = load_file(path.parent / "adapter" / "adapter_model.safetensors")
        kept = {key: record[key] for key in ("status", "metrics", "curves", "params")}
        found[path.parent.name] = kept | {"weights": {k: v.numpy().tobytes() for k, v in weights.items()}}
    return found


def kill_and_go_on(
    folder: Path, settings: list[str], whole: Whole, tally: Tally, chance: random.Random
) -> None:
    """Kill once or twice, then let the run end, and compare."""
    resume: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        program = processes.start(folder, arguments(settings, *resume))
        signum = chance.choice(SIGNALS)
        while_writing = signum == signal.SIGKILL and chance.random() < 0.5
        wait_for_the_moment(folder, program, chance.uniform(0, whole.seconds), while_writing)
        lost = None if resume else unsaved_seconds(folder, program)
        program.signal(signum)
        code = program.wait()
        tally.kills += 1
        tally.ended_before += code == 0
        check_end(folder, signum, code, tally, program.said)
        if signum == signal.SIGKILL and lost is not None:
            tally.most_lost_seconds = max(tally.most_lost_seconds, lost)
            if lost > 60 * EVERY_MINUTES + SLOW:
                tally.faults.append(f"{lost:.1f} s of training were not saved")
        resume = ["resume=true"]
    program = processes.start(folder, arguments(settings, *resume))
    if code := program.wait():
        tally.faults.append(f"going on ended with {code}: {program.said[-2000:]}")
        return
    tally.resumed += 1
    if difference := first_difference(whole.results, results(folder)):
        tally.faults.append(f"{difference}: {program.said[-2000:]}")


def wait_for_the_moment(
    folder: Path, program: processes.Program, seconds: float, while_writing: bool
) -> None:
    """Wait for a time or, after that time, for a file that is being written."""
    end = time.monotonic() + seconds
    latest = end + 3.0
    while time.monotonic() < end:
        time.sleep(0.001)
    while while_writing and time.monotonic() < latest and not unfinished(folder):
        pass


def unfinished(folder: Path) -> list[Path]:
    """Files that are being written, or were when the process ended."""
    return list((folder / "outputs").glob(f"*/**/.*{UNFINISHED}"))


def unsaved_seconds(folder: Path, program: processes.Program) -> float | None:
    """How long ago a single run in training saved its state; None: it has not begun, or has trained all."""
    saved = [path.stat().st_mtime for path in (folder / "outputs" / "x").glob("checkpoints/last.ckpt")]
    trained = re.search(r"^epoch (\d+)/\1 ", program.said, re.MULTILINE)
    return time.time() - max(saved) if saved and not trained else None


def check_end(folder: Path, signum: int, code: int, tally: Tally, said: str) -> None:
    """Exit code, and no torn files."""
    if code not in (0, 128 + signum):
        tally.faults.append(f"{signal.Signals(signum).name} ended with {code}: {said[-2000:]}")
    for path in (folder / "outputs").glob("*/results.json"):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            tally.faults.append(f"{path} is torn: {error}")
    for path in (folder / "outputs").glob("*/checkpoints/*.ckpt"):
        try:
            read_checkpoint(path)
        except DamagedCheckpoint as error:
            tally.faults.append(f"torn: {error}")


def first_difference(whole: Any, resumed: Any, where: str = "") -> str:
    """Where two results differ first; "" where they do not."""
    if isinstance(whole, dict) and isinstance(resumed, dict):
        if whole.keys() != resumed.keys():
            return f"{where}: {sorted(whole.keys() ^ resumed.keys())} in one only"
        return next((d for k in whole if (d := first_difference(whole[k], resumed[k], f"{where}/{k}"))), "")
    if whole == resumed:
        return ""
    return f"{where} differs" + ("" if isinstance(whole, bytes) else f": {whole} became {resumed}")


def show(tallies: dict[str, Tally]) -> int:
    """Print the table; return the exit code."""
    print(f"\n{'case':28}{'kills':>6}{'too late':>9}{'went on':>8}{'most lost, s':>13}{'faults':>7}")
    for name, t in tallies.items():
        print(
            f"{name:28}{t.kills:6}{t.ended_before:9}{t.resumed:8}{t.most_lost_seconds:13.1f}{len(t.faults):7}"
        )
    faults = sum(len(tally.faults) for tally in tallies.values())
    kills = sum(tally.kills for tally in tallies.values())
    print(f"{kills} kills, {faults} faults ({os.cpu_count()} cores)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

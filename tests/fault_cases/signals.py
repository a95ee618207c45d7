"""Runs and jobs that are asked to stop, or killed."""

import os
import signal
import subprocess
import sys
import time

import processes

from .registry import LONG, SMALL, Place, case, expect, line_with

STOPPING = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@case("1, 5", "SIGTERM, SIGINT, SIGHUP in training", linux=False)
def in_training(place: Place) -> str:
    """Each stops the training with its exit code, and the training goes on from there."""
    epochs = 0
    for signum, code in STOPPING.items():
        resume = ["resume=true"] if epochs else []
        program = place.start(*LONG, "name=x", *resume, log=f"log{signum}")
        program.says(f"epoch {epochs + 2}/")
        program.signal(signum)
        expect(program.wait() == code, f"{signum} ended otherwise: {program.said[-2000:]}")
        expect("Traceback" not in program.said, program.said[-2000:])
        line_with(program.said, "resume=true")
        expect(place.record()["status"] == "interrupted", "it is not recorded as interrupted")
        first = next(line for line in program.said.splitlines() if line.startswith("epoch "))
        expect(not epochs or not first.startswith("epoch 1/"), "it began anew")
        epochs = int(program.said.rpartition("epoch ")[2].partition("/")[0])
    return f"exit codes {', '.join(map(str, STOPPING.values()))}, a line each; it went on to epoch {epochs}"


@case("5", "signals in the first seconds", linux=False)
def in_the_first_seconds(place: Place) -> str:
    """While Python still imports, and while the run is built."""
    command = [sys.executable, str(processes.ROOT / "src" / "run.py"), *LONG, "name=x"]
    (place.folder / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT / "tests")}
    for signum, seconds in ((signal.SIGINT, 2.0), (signal.SIGTERM, 3.0), (signal.SIGINT, 5.0)):
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=place.folder / "work", env=environment
        ) as started:
            time.sleep(seconds)
            started.send_signal(signum)
            said = started.communicate()[1]
        expect(started.returncode in (STOPPING[signum], -signum), f"{started.returncode}: {said[-2000:]}")
        expect("Traceback" not in said, said[-2000:])
    for seconds in (0.05, 0.2, 0.4, 0.8):
        program = place.start(*LONG, f"name=y{seconds}")
        time.sleep(seconds)
        program.signal(signal.SIGTERM)
        expect(program.wait() == 143 and "Traceback" not in program.said, program.said[-2000:])
    return "130 and 143, no traceback"


@case("5", "two signals", linux=False)
def two_signals(place: Place) -> str:
    """The second one stops at once: the image that is being read takes a minute."""
    program = place.start(*LONG, "data.loader=fake_data.load_slowly", "name=x")
    program.says("reads slowly")
    program.signal(signal.SIGTERM)
    program.says("a second signal stops at once")
    time.sleep(1.2)  # signals that come together are one
    begun = time.monotonic()
    program.signal(signal.SIGTERM)
    code = program.wait(50)
    expect(code == 143 and "Traceback" not in program.said, f"{code}: {program.said[-2000:]}")
    return f"exit code 143 after {time.monotonic() - begun:.1f} s"


@case("6", "kill -9 of the process of a sweep's job")
def killed_job(place: Place) -> str:
    """It is interrupted, not out of memory, and the next sweep goes on from its state."""
    arguments = ["-m", *SMALL, "epochs=60", "method=tinytl", "name=x"]
    program = place.start(*arguments)
    program.says("epoch 3/")
    os.kill(children(program.number)[0], signal.SIGKILL)
    expect(program.wait() == 1, program.said[-2000:])
    record = place.record()
    expect(
        (record["status"], record["reason"]) == ("interrupted", "killed by SIGKILL"), str(record["reason"])
    )
    code, said = place.run(*arguments, log="again")
    first = next(line for line in said.splitlines() if line.startswith("epoch "))
    expect(code == 0 and "goes on" in said and not first.startswith("epoch 1/"), said[-2000:])
    expect(place.record()["status"] == "finished", "it has not finished")
    return f"interrupted (killed by SIGKILL); the next sweep went on with {first.split()[1]}"


def children(number: int) -> list[int]:
    """The processes that a process has started."""
    path = f"/proc/{number}/task/{number}/children"
    with open(path) as file:
        return [int(child) for child in file.read().split()]

"""Weights & Biases that fails."""

import os
import signal
import time

import processes

from .registry import LONG, SMALL, Place, case, expect, line_with, one_error
from .signals import children

OFFLINE = [*SMALL, "wandb=offline", "name=x"]


@case("8", "W&B's service is killed in training")
def killed_service(place: Place) -> str:
    """Training and test end, and results.json is finished."""
    program = place.start(*OFFLINE, "epochs=60")
    program.says("epoch 2/")
    services = [number for number in descendants(program.number) if "wandb-core" in command(number)]
    expect(bool(services), "there is no service")
    for number in services:
        os.kill(number, signal.SIGKILL)
    code = program.wait()
    expect(code == 0 and "Traceback" not in program.said, f"{code}: {program.said[-3000:]}")
    expect(place.record()["status"] == "finished", "it is not recorded as finished")
    return line_with(program.said, "W&B could not")


@case("8", "W&B cannot write its folder", linux=False)
def no_folder(place: Place) -> str:
    """A file is where it would write: the run goes on without it."""
    place.outputs.mkdir(parents=True)
    (place.outputs / "x").mkdir()
    (place.outputs / "x" / "wandb").write_text("a file")
    code, said = place.run(*OFFLINE, "epochs=2")
    expect(code == 0 and place.record()["status"] == "finished", f"{code}: {said[-2000:]}")
    lines = [line for line in said.splitlines() if "W&B" in line or "wandb" in line.lower()]
    return lines[0] if lines else "no word: W&B took another folder"


@case("8", "W&B online without a key", linux=False)
def no_key(place: Place) -> str:
    """Refused before work."""
    home = {"HOME": str(place.folder), "NETRC": str(place.folder / "netrc"), "WANDB_API_KEY": ""}
    code, said = place.run(*LONG, "wandb=online", "name=x", **home)
    expect("epoch 1/" not in said, "it trained")
    return one_error(code, said, "wandb.mode=online")


def descendants(number: int) -> list[int]:
    """All processes below a process."""
    below = children(number)
    return [*below, *(one for child in below for one in descendants(child))]


def command(number: int) -> str:
    """What a process runs."""
    with open(f"/proc/{number}/cmdline", "rb") as file:
        return file.read().decode(errors="replace")


@case("10", "two processes with W&B offline", linux=False)
def two_processes(place: Place) -> str:
    """One line an epoch; stopped by SIGTERM it goes on exactly."""
    two = [*OFFLINE, "trainer.devices=2", "trainer.accelerator=cpu", "epochs=3", "batch_size=2"]
    path = {"PYTHONPATH": str(processes.ROOT / "tests")}  # the second process is a program of its own
    code, said = place.run(*two, "name=whole", **path)
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    expect(code == 0 and len(lines) == 3, f"{code}: {said[-3000:]}")
    whole = place.record("whole")
    program = place.start(*two, log="stopped", **path)
    program.says("epoch 1/")
    program.signal(signal.SIGTERM)
    code = program.wait()
    expect(code == 143 and "Traceback" not in program.said, f"{code}: {program.said[-3000:]}")
    expect(place.record()["status"] == "interrupted", "it is not recorded as interrupted")
    time.sleep(0.5)
    code, said = place.run(*two, "resume=true", log="resumed", **path)
    expect(code == 0, f"{code}: {said[-3000:]}")
    record = place.record()
    for part in ("status", "metrics", "curves"):
        expect(record[part] == whole[part], f"{part}: {whole[part]} became {record[part]}")
    return "a line for each epoch, exit code 0; after SIGTERM (143) the same figures"

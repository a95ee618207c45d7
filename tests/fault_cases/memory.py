"""Memory of long runs and of long sweeps."""

import re
import time
from contextlib import suppress

from .registry import SMALL, Place, case, expect

KB_PER_STEP, KB_PER_JOB = 0.5, 50.0
WEIGHED = re.compile(r"^(\d+) images read, (\d+) kB$", re.MULTILINE)


@case("", "memory of a long stream")
def stream(place: Place) -> str:
    """An image a step, with checkpoints within the epoch."""
    settings = ["data.stream=true", "epochs=1", f"trainer.limit_train_batches={place.options.steps}"]
    return growth(place, [*settings, "batch_size=1", "checkpoint_every_minutes=0.1"], images_a_step=1)


@case("", "memory of many epochs")
def epochs(place: Place) -> str:
    """Eight steps an epoch, with a checkpoint after each."""
    return growth(place, [f"epochs={place.options.steps // 8}", "batch_size=2"], images_a_step=2)


def growth(place: Place, settings: list[str], images_a_step: int) -> str:
    """Run, and compare the resident memory after a tenth of the steps with the end's."""
    loader = "data.loader=fake_data.load_" + ("many_weighed" if images_a_step == 1 else "weighed")
    code, said = place.run(*SMALL, loader, *settings, "data.val_fraction=0", "engine=lean", "name=x")
    expect(code == 0, said[-2000:])
    sizes = [(int(read) / images_a_step, int(kb)) for read, kb in WEIGHED.findall(said)]
    (begun, early), (ended, late) = sizes[len(sizes) // 10], sizes[-1]
    expect(ended >= 0.9 * place.options.steps, f"only {ended:.0f} steps were watched")
    per_step = (late - early) / (ended - begun)
    expect(per_step < KB_PER_STEP, f"{early} kB became {late} kB: {per_step:.2f} kB a step")
    reached = f"{early / 1000:.1f} MB at step {begun:.0f}, {late / 1000:.1f} at {ended:.0f}"
    return f"{reached}: {per_step:.2f} kB a step"


@case("", "memory of a long sweep")
def sweep(place: Place) -> str:
    """The process that starts the jobs, over all of them."""
    jobs = place.options.jobs
    settings = ["epochs=1", "method=last", "name=${seed}", f"seed=range(0,{jobs})"]
    program = place.start("-m", *SMALL, *settings, "trainer.limit_train_batches=1")
    sizes: dict[int, int] = {}
    while not program.has_ended:
        done = program.said.count(" done, ")
        if done and done not in sizes:
            with suppress(OSError, IndexError):  # it has ended meanwhile
                sizes[done] = resident_kb(program.number)
        time.sleep(0.05)
    expect(program.wait() == 0, program.said[-2000:])
    begun, ended = min(n for n in sizes if n >= jobs / 10), max(sizes)
    per_job = (sizes[ended] - sizes[begun]) / max(1, ended - begun)
    expect(per_job < KB_PER_JOB, f"{sizes[begun]} kB became {sizes[ended]} kB: {per_job:.0f} kB a job")
    return (
        f"{sizes[begun] / 1000:.1f} MB after {begun} jobs, {sizes[ended] / 1000:.1f} after {ended}: "
        f"{per_job:.0f} kB a job"
    )


def resident_kb(number: int) -> int:
    """The resident memory of a process."""
    with open(f"/proc/{number}/status") as file:
        return int(re.findall(r"VmRSS:\s+(\d+)", file.read())[0])

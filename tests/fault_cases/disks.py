"""Output folders that are full, read-only, gone, or never could be written."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tinytl.training.checkpoints import read_checkpoint

from .registry import LONG, SMALL, Place, case, expect, line_with, one_error


@contextmanager
def file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in a folder, in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes free, while others write too."""
    with suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
        while (free := shutil.disk_usage(folder).free) > leave:
            file.write(bytes(min(free - leave, 100_000)))


def kept(place: Place, said: str) -> dict[str, Any]:
    """The results, in their place or where the program says that it has kept them."""
    path = place.outputs / "x" / "results.json"
    elsewhere = [line for line in said.splitlines() if "results.json could not be written" in line]
    if elsewhere:
        path = Path(elsewhere[-1].split("it is kept as ")[1])
    return json.loads(path.read_text())


@case("3, 8", "the disk fills up in training", root=True)
def full_disk(place: Place) -> str:
    """Training and test end; what is on the disk is whole."""
    seen = []
    for leave in (0, 20_000, 300_000):  # nothing; results, but no checkpoint; perhaps one checkpoint
        with file_system(place.outputs, "8m"):
            program = place.start(*SMALL, "epochs=40", "name=x", log=f"log{leave}", **refuge(place))
            program.says("epoch 2/")
            fill(place.outputs, leave)
            code = program.wait()
            expect("Traceback" not in program.said, program.said[-3000:])
            record = kept(place, program.said)
            expect(
                record["status"] == "finished" and len(record["curves"]["epoch"]) == 40, str(record)[-900:]
            )  # type: ignore[index]
            for path in place.outputs.glob("x/checkpoints/*.ckpt"):
                read_checkpoint(path)
            seen.append(f"{code}{', kept elsewhere' if 'results.json could' in program.said else ''}")
        shutil.rmtree(place.outputs)
    return f"trained and tested, exit codes {'; '.join(seen)}"


def refuge(place: Place) -> dict[str, str]:
    """A folder for temporary files that is the case's own."""
    folder = place.folder / "temporary"
    folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(folder)}


@case("3, 25", "the disk is full before the run begins", root=True)
def full_from_the_start(place: Place) -> str:
    """Refused before work."""
    with file_system(place.outputs, "1m"):
        fill(place.outputs, 0)
        code, said = place.run(*LONG, "name=x", **refuge(place))
        expect("epoch 1/" not in said, "it trained")
        return one_error(code, said, "No space left")[:100]


@case("8, 25", "the output folder becomes read-only in training", root=True)
def becomes_read_only(place: Place) -> str:
    """The results are kept in the folder for temporary files, and that is said."""
    with file_system(place.outputs, "20m"):
        program = place.start(*SMALL, "epochs=30", "name=x", **refuge(place))
        program.says("epoch 2/")
        # Bound to itself: a file system that has files open for writing cannot become read-only.
        subprocess.run(["mount", "--bind", str(place.outputs), str(place.outputs)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(place.outputs)], check=True)
            code = program.wait()
        finally:
            subprocess.run(["umount", "--lazy", str(place.outputs)], check=True)
        said = program.said
        expect("Traceback" not in said and code == 1, f"{code}: {said[-3000:]}")
        expect(kept(place, said)["status"] == "finished", "the results are not those of a finished run")
        line_with(said, "adapter could not be written")
        return line_with(said, "results.json could not be written")[-150:]


@case("8, 25", "the output folder is removed in training", linux=False)
def vanishes(place: Place) -> str:
    """It is made again."""
    program = place.start(*SMALL, "epochs=60", "name=x", **refuge(place))
    program.says("epoch 2/")
    place.outputs.rename(place.folder / "gone")
    code = program.wait()
    expect(code == 0 and "Traceback" not in program.said, f"{code}: {program.said[-2000:]}")
    expect(kept(place, program.said)["status"] == "finished", "it has not finished")
    return "made again; exit code 0, results and weights in it"


@case("25", "output folders that cannot be written", root=True)
def never_writable(place: Place) -> str:
    """Read-only, a file, /proc, a name that is too long: one line, before work."""
    (place.folder / "work").mkdir()
    (place.folder / "work" / "file").touch()
    reasons = []
    with file_system(place.folder / "read_only", "1m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for number, output_dir in enumerate((str(folder), "file", "/proc/x", "n" * 300)):
            for mode in ([], ["-m"]):
                code, said = place.run(
                    *mode, *LONG, f"output_dir={output_dir}", "name=x", log=f"{number}{mode}"
                )
                reasons.append(one_error(code, said, "output_dir").rpartition(": ")[2][-60:])
    return "; ".join(dict.fromkeys(reasons))

"""What a run reads and leaves: compiled operators, servers, images that change, temporary files."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import torch
from image_folders import write_split

from .registry import LONG, SMALL, Fault, Place, Skipped, case, expect, one_error

ONCE = [*SMALL, "epochs=1", "overwrite=true", "name=x"]
DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: (Path(torch.__file__).parent / "lib" / "libshm.so").read_bytes(),
    "no library": lambda content: b"<html>",
}


@case("22", "damaged libraries of compiled operators", linux=False)
def damaged_libraries(place: Place) -> str:
    """Compiled again, and the damaged file is gone."""
    if shutil.which("c++") is None:
        raise Skipped("there is no C++ compiler")
    cache = {"XDG_CACHE_HOME": str(place.folder / "cache")}
    two = [place.start(*SMALL, "epochs=1", f"name={name}", log=name, **cache) for name in ("a", "b")]
    expect([one.wait() for one in two] == [0, 0], two[0].said[-2000:] + two[1].said[-2000:])
    for name, damage in DAMAGES.items():
        (library,) = (place.folder / "cache" / "tinytl").glob("kernels-*.so")
        library.write_bytes(damage(library.read_bytes()))
        code, said = place.run(*ONCE, log=name, **cache)
        expect(
            code == 0 and place.record()["provenance"]["operators"] == "compiled", f"{name}: {said[-2000:]}"
        )
    return f"two at once with an empty cache; {', '.join(DAMAGES)}: compiled again"


@case("20, 22", "compilers that fail", linux=False)
def failing_compilers(place: Place) -> str:
    """Plain operators take over, with a line; the limit of a compiler that hangs is in the suite."""
    (place.folder / "fails").write_text("#!/bin/sh\necho 'error: no such thing' >&2; exit 1\n")
    (place.folder / "fails").chmod(0o755)
    for number, compiler in enumerate((str(place.folder / "fails"), "/nowhere/c++", "'")):
        cache = {"XDG_CACHE_HOME": str(place.folder / f"cache{number}"), "CXX": compiler}
        code, said = place.run(*ONCE, log=str(number), **cache)
        expect(code == 0 and place.record()["provenance"]["operators"] == "plain", f"{code}: {said[-2000:]}")
        expect("compiler" in said or "CXX" in said, f"no word: {said[-2000:]}")
    return "plain operators, with a line that says why"


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@case("20", "a server that never answers", linux=False)
def silent(place: Place) -> str:
    """One line after the limit for silence."""
    with silent_server() as port:
        code, said = place.run(*LONG, f"checkpoint=http://127.0.0.1:{port}/weights.pth", "name=x")
    return one_error(code, said, "said nothing for")


@case("7", "a test image breaks after the check", linux=False)
def broken_later(place: Place) -> str:
    """The training is kept; the next start, with the image mended, tests without training again."""
    images = write_split(place.folder / "images")
    settings = [*SMALL, "data=folder", f"data.root={images}", "data.loader=tinytl.data.folder.load"]
    settings += ["data.num_classes=null", "name=x", "epochs=40", "data.val_fraction=0"]
    program = place.start(*settings)
    program.says("epoch 1/")
    image = images / "test" / "bee" / "1.png"
    content = image.read_bytes()
    image.write_bytes(content[:40])
    code = program.wait()
    line = one_error(code, program.said, "1.png")
    expect("Traceback" not in program.said and place.record()["status"] == "failed", program.said[-2000:])
    image.write_bytes(content)
    code, said = place.run(*settings, "resume=true", log="again")
    expect(code == 0 and "epoch " not in said, f"{code}: {said[-2000:]}")
    expect(len(place.record()["curves"]["epoch"]) == 40, "epochs are missing")
    return f"{line[:90]}; the next start trained no epoch"


@case("3", "files left in the temporary folder", linux=False)
def litter(place: Place) -> str:
    """After a run with W&B, a sweep, and a run that was killed and went on: none."""
    folder = place.folder / "temporary"
    folder.mkdir()
    temporary = {"TMPDIR": str(folder)}
    offline = [*SMALL, "wandb=offline"]

    def left(after: str) -> None:
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        if found:
            raise Fault(f"after {after}: {found[:9]}")

    program(place, *offline, "name=a", "epochs=1", **temporary)
    left("a run")
    program(place, "-m", *offline, "name=${seed}", "seed=0,1", "epochs=1", **temporary)
    left("a sweep")
    killed = place.start(*SMALL, "name=b", "epochs=60", log="killed", **temporary)
    killed.says("epoch 2/")
    killed.signal(signal.SIGKILL)
    killed.wait()
    program(place, *SMALL, "name=b", "epochs=60", "resume=true", **temporary)
    left("a killed run that went on")
    unfinished = [path for path in place.outputs.rglob(".*") if path.name not in (".lock",)]
    expect(not unfinished, f"in the output folder: {unfinished}")
    return "none"


def program(place: Place, *arguments: str, **environment: str) -> None:
    """Run the program as a shell does: what Python does at its end is done too."""
    command = [sys.executable, str(processes.ROOT / "src" / "run.py"), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(processes.ROOT / "tests"), **environment}
    variables.pop("TORCHINDUCTOR_CACHE_DIR", None)
    place.outputs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=place.outputs.parent, env=variables, capture_output=True, text=True)
    expect(done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:])

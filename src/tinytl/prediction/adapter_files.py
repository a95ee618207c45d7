"""Find the file of trained weights that `adapter=` means: of a run, of an adapter's folder, or itself."""

import difflib
import os
from pathlib import Path

from tinytl.errors import UserError
from tinytl.records.results import read_record
from tinytl.weights.adapter_places import file_in

EXPORTED = (".onnx", ".pt2", ".pte")  # suffixes of exported files


def is_exported(source: str) -> bool:
    """Whether the name is that of an exported file."""
    return Path(source).suffix.lower() in EXPORTED


def adapter_file(source: str) -> Path:
    """Return the file that `source` means.

    Raises UserError where there is none, or the run has not finished.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"adapter={source}: no such file or folder{_near(path)}")
    _refuse_unfinished(path, source)
    file = file_in(path)
    if not file.is_file():
        raise UserError(f"adapter={source}: neither a finished run nor an adapter is in this folder")
    return file


def run_of(file: Path) -> Path | None:
    """The folder of the run that wrote a file of trained weights; None if no run's results are beside it."""
    folder = file.absolute().parent.parent
    return folder if (folder / "results.json").is_file() else None


def _refuse_unfinished(folder: Path, source: str) -> None:
    """Raise UserError for the folder of a run that has not finished: its weights may be of any epoch."""
    results = folder / "results.json"
    if not results.is_file() and not (folder / "checkpoints").is_dir():
        return
    status = read_record(results).get("status", "no results.json")
    if status != "finished":
        raise UserError(
            f"adapter={source}: a run that has not finished ({status}); resume=true goes on with it, and "
            f"adapter=FILE takes the weights in a file as they are"
        )


def _near(path: Path) -> str:
    """Suggest the entry of the same folder with the most similar name, in words for an error."""
    try:
        entries = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, entries, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""

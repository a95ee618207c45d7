"""Write results.json with how the run ended; if its folder cannot be written to, write it elsewhere."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinytl.experiment.terminal.error_lines import one_line
from tinytl.memory.out_of_memory import KernelKills, is_out_of_memory
from tinytl.records.results import write_json
from tinytl.system.processes import is_first_process
from tinytl.training.checkpoints import PREVIOUS
from tinytl.training.stopping import Stopped


def outcome_of(error: BaseException, kills: KernelKills) -> dict[str, str]:
    """Return status and reason of a run that ended with an error."""
    if isinstance(error, Stopped):
        return {"status": "interrupted", "reason": f"stopped by {error}"}
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
        return {"status": "interrupted", "reason": "interrupted by hand"}
    reason = one_line(error) or type(error).__name__
    lost_worker = "DataLoader worker" in reason and kills.happened()
    return {
        "status": "out_of_memory" if is_out_of_memory(error) or lost_worker else "failed",
        "reason": reason,
    }


def write_record(folder: Path, record: dict[str, Any]) -> str | None:
    """Write results.json; of several processes only the first one does. Returns what `keep` returns."""
    if not is_first_process():
        return None
    return keep(folder / "results.json", lambda path: write_json(path, record))


def keep(path: Path, write: Callable[[Path], Any]) -> str | None:
    """Write a file of results; if that fails, write it into the folder for temporary files.

    Returns a line that says so, or None if the file is in its place. On a full disk, the checkpoint before
    the last is removed first, to make room.
    """
    try:
        write(path)
        return None
    except OSError:
        with suppress(OSError):  # the folder is read-only, or gone
            for previous in path.parent.glob(f"**/{PREVIOUS}"):
                previous.unlink()
    try:
        write(path)
        return None
    except OSError as error:
        name = path.absolute().as_posix().strip("/").replace("/", "+")
        refuge = Path(tempfile.gettempdir()) / "tinytl-results" / name
        write(refuge)
        return f"{path} could not be written ({error.strerror or error}); it is kept as {refuge}"

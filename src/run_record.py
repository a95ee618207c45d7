"""A run's results.json: how it ended, and the record kept wherever it can be."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from command_line import one_line
from tinytl.errors import UserError
from tinytl.memory.out_of_memory import KernelKills, is_out_of_memory
from tinytl.results import write_json
from tinytl.training.checkpoints import PREVIOUS
from tinytl.training.stopping import Stopped

log = logging.getLogger("tinytl")


def outcome_of(error: BaseException, kills: KernelKills) -> dict[str, str]:
    """Status and reason of a run that ended by an error."""
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


@rank_zero_only
def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write results.json, or keep the record elsewhere; of several processes the first one does."""
    keep(folder, "results.json", lambda path: write_json(path, record))


def keep(folder: Path, name: str, write: Callable[[Path], Any]) -> None:
    """Write a file of results into a run's folder.

    Where that fails the checkpoint before the last makes room. Where it fails again the file goes into a
    folder for temporary files, and UserError says where it is.
    """
    try:
        write(folder / name)
        return
    except OSError:
        (folder / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    try:
        write(folder / name)
    except OSError as error:
        refuge = Path(tempfile.gettempdir()) / f"tinytl-{folder.name}"
        write(refuge / Path(name).name)
        reason = error.strerror or str(error)
        raise UserError(f"{folder / name} could not be written ({reason}); it is in {refuge}") from error

"""An adapter: a folder with what was trained, and a readable copy of its record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tinytl.errors import UserError
from tinytl.system.files import write_whole
from tinytl.weights.adapter_places import CONFIG, MODEL
from tinytl.weights.own_checkpoints import save_trained


def save_adapter(folder: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the tensors with their record, and the record once more as JSON."""
    save_trained(folder / MODEL, state, record)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_whole(folder / CONFIG, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))


def check_config(path: Path, record: Any, source: str) -> None:
    """Raise UserError where the JSON file beside an adapter's tensors does not say the same as they do."""
    config = path.with_name(CONFIG)
    if path.name != MODEL or not config.is_file():
        return
    try:
        written = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint={source}: {CONFIG} cannot be read ({error})") from error
    if not isinstance(written, dict) or not isinstance(record, dict):
        raise UserError(f"checkpoint={source}: {CONFIG} or the record in {MODEL} is not a record")
    keys = [key for key in {**record, **written} if record.get(key) != written.get(key)]
    if keys:
        ours, theirs = (str(values.get(keys[0]))[:60] for values in (written, record))
        raise UserError(
            f"checkpoint={source}: {CONFIG} says {keys[0]}={ours}, {MODEL} says {keys[0]}={theirs}"
        )

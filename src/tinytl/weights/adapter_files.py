"""An adapter: a folder with what was trained, and a readable copy of its record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tinytl.errors import UserError
from tinytl.records.results import write_text
from tinytl.weights.adapter_places import CONFIG, MODEL, file_in
from tinytl.weights.check_own_record import check_record
from tinytl.weights.own_checkpoints import OwnRecord, save_trained
from tinytl.weights.tensor_names import canonical
from tinytl.weights.weight_files import read_weights


def save_adapter(folder: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the tensors with their record, and the record once more as JSON."""
    save_trained(folder / MODEL, state, record)
    write_text(folder / CONFIG, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


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
        key = keys[0]
        in_config, in_model = (str(values.get(key))[:60] for values in (written, record))
        raise UserError(
            f"checkpoint={source}: {CONFIG} says {key}={in_config}, {MODEL} says {key}={in_model}"
        )


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], OwnRecord]:
    """Return the tensors (by canonical name) and the record in the folder of an adapter or a run.

    Raises UserError where there is none, where it is damaged, and where its two files differ.
    """
    path = file_in(folder)
    if not path.is_file():
        raise UserError(f"{folder}: no adapter is there ({MODEL})")
    try:
        content = read_weights(path, str(path))
        record = check_record(content.record, str(path))
        check_config(path, content.record, str(path))
    except UserError as error:
        raise UserError(str(error).removeprefix("checkpoint=")) from error
    return {canonical(key): tensor for key, tensor in content.tensors.items()}, record

"""Checkpoints of our own: they hold what was trained, and say what belongs to it.

The frozen rest comes from the base, the weights that the run began with. The record names it by path, address
or name, and holds a hash of the frozen part, by which another base is told.
"""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tinytl.errors import UserError
from tinytl.networks.quantize import QuantizeName
from tinytl.networks.spec import EMBEDDED, NetworkSpec
from tinytl.weights.download import is_url, local_path
from tinytl.weights.tensor_names import STATISTICS, canonical
from tinytl.weights.weight_files import OWN, save_weights


@dataclass(frozen=True)
class OwnRecord:
    """What a checkpoint of ours says of itself. What older versions did not record is None."""

    spec: NetworkSpec  # the network; its checkpoint is the base as the run was given it
    method: str
    quantize: QuantizeName
    blocks: int | None = None
    base_path: str | None = None  # absolute; None: the base is no file
    frozen_sha256: str | None = None
    mean: list[float] | None = None  # of the images, per channel, as is the standard deviation
    std: list[float] | None = None
    resolution: int | None = None  # pixels
    class_names: list[str] | None = None


def own_record(
    spec: NetworkSpec, method: str, quantize: QuantizeName, blocks: int | None = None, *,
    network: nn.Module, mean: Sequence[float], std: Sequence[float], resolution: int,
    class_names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """What a checkpoint of ours must say of itself, as plain data.

    `network` is the one that is trained: after `freeze` and `quantize_frozen`, before `make_lean`.
    """
    base = local_path(spec.checkpoint) if spec.checkpoint else None
    record = OwnRecord(
        spec, method, quantize, blocks,
        base_path=str(base.absolute()) if base else None, frozen_sha256=frozen_sha256(network),
        mean=[float(value) for value in mean], std=[float(value) for value in std],
        resolution=int(resolution), class_names=[str(name) for name in class_names],
    )  # fmt: skip
    return asdict(record)


def save_trained(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write `trainable_state` and `own_record` whole as safetensors, for `checkpoint=PATH`."""
    save_weights(path, state, {OWN: record})


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """What a training run may have changed: trainable parameters, and BatchNorm statistics."""
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    return {k: v for k, v in network.state_dict().items() if k in trainable or k.endswith(STATISTICS)}


def frozen_sha256(network: nn.Module) -> str:
    """Hash of the names, types, shapes and values of all that training leaves as it is."""
    trained = trainable_state(network).keys()
    frozen = {canonical(k): v for k, v in network.state_dict().items() if k not in trained}
    digest = hashlib.sha256()
    for name, tensor in sorted(frozen.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def base_sources(record: OwnRecord, folder: Path, chain: Collection[Path], source: str) -> list[str | None]:
    """What may be the base of the checkpoint `source` in `folder`, the likeliest first.

    A file is looked for where the run found it; then by the same relative path from here and from every
    folder around the checkpoint, which helps where a project was moved as a whole; then by its name beside
    the checkpoint. `chain` holds the checkpoints that lead here, which cannot be their own base. Raises
    UserError where there is no such file.
    """
    given = record.spec.checkpoint
    certainly_no_file = record.base_path is None and (record.frozen_sha256 is not None or is_url(given or ""))
    if given is None or given == EMBEDDED or certainly_no_file:
        return [given]
    file = local_path(given) or Path(given)
    recorded = Path(record.base_path or file)
    around = [parent / file for parent in (folder, *folder.parents)]
    places = [place for place in (recorded, file, *around, folder / file.name) if os.path.isfile(place)]
    files = dict.fromkeys(place.resolve() for place in places)
    usable: list[str | None] = [str(path) for path in files if path not in chain]
    if not usable and record.base_path is None and timm.is_model_pretrained(given):
        return [given]
    if not usable and recorded.resolve() in chain:
        raise UserError(f"checkpoint={source}: it is its own base, directly or through others ({recorded})")
    if not usable:
        frozen = f", whose frozen part has the SHA-256 {record.frozen_sha256}" if record.frozen_sha256 else ""
        raise UserError(
            f"checkpoint={source}: the base it was trained from is missing{frozen}: neither {recorded} nor "
            f"{folder / file.name}"
        )
    return usable

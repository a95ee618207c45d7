"""Our own checkpoints and adapters: they hold the tensors that were trained, and a record of the training.

All other tensors come from the base, the weights that the training began with. The record names the base by
path, URL or timm name, and holds a hash of these tensors, by which a wrong base is recognised.
"""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from tinytl.errors import UserError
from tinytl.methods import changing_statistics
from tinytl.networks.norms import NormName
from tinytl.networks.quantize import QuantizeName, rounded_weight
from tinytl.networks.spec import NetworkSpec, is_named
from tinytl.system.version import VERSION
from tinytl.weights.adapter_places import file_in
from tinytl.weights.download import is_url, local_path
from tinytl.weights.tensor_names import COUNTER, canonical
from tinytl.weights.weight_files import OWN, save_weights


@dataclass(frozen=True)
class OwnRecord:
    """The record in our own checkpoint. Fields that older versions did not write are None."""

    # The network, by timm's name of the model, or by the class of a network of one's own. Its `checkpoint` is
    # the base, as the run's setting named it.
    spec: NetworkSpec
    method: str
    quantize: QuantizeName
    blocks: int | None = None
    base_path: str | None = None  # absolute; None: the base is no file
    frozen_sha256: str | None = None  # of all tensors that the file does not hold, rounded to 8 bits
    mean: list[float] | None = None  # mean of the images, per channel
    std: list[float] | None = None  # standard deviation of the images, per channel
    resolution: int | None = None  # pixels
    class_names: list[str] | None = None
    task: Literal["multiclass", "multilabel"] | None = None
    metrics: dict[str, float | str] | None = None  # of these weights, as in results.json
    classifier: str | None = None  # name of the classifier and of the blocks, where timm does not tell them
    block_names: list[str] | None = None
    version: str | None = None  # of tinytl


def own_record(
    spec: NetworkSpec, method: str, quantize: QuantizeName, blocks: int | None = None, *,
    network: nn.Module, mean: Sequence[float], std: Sequence[float], resolution: int,
    class_names: Sequence[str], task: Literal["multiclass", "multilabel"] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of our own checkpoint as plain data.

    `network` is the one to train, after `freeze` and `quantize_frozen` and before `make_lean`.
    """
    record = OwnRecord(
        spec, method, quantize, blocks,
        frozen_sha256=frozen_sha256(network, trainable_state(network, spec.norm)),
        mean=[float(value) for value in mean], std=[float(value) for value in std],
        resolution=int(resolution), class_names=[str(name) for name in class_names],
        task=task, version=VERSION,
    )  # fmt: skip
    return asdict(with_base(record, spec.checkpoint))


def with_base(record: OwnRecord, base: str | None) -> OwnRecord:
    """The record with this base: a path, a URL, the name of timm weights, or None for random weights."""
    path = local_path(base) if base and not is_named(base) else None
    spec = replace(record.spec, checkpoint=base)
    return replace(record, spec=spec, base_path=str(path.absolute()) if path else None)


def save_trained(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write `trainable_state` and `own_record` as safetensors, to be read by `checkpoint=PATH`."""
    save_weights(path, state, {OWN: record})


def trainable_state(network: nn.Module, norm: NormName) -> dict[str, Tensor]:
    """The tensors that are not the base's: trainable parameters, and BatchNorm statistics that may change.

    `state_dict` is not used, because a lean network would dequantise its frozen weights for it.
    """
    parameters = network.named_parameters(remove_duplicate=False)
    buffers, statistics = network.named_buffers(remove_duplicate=False), changing_statistics(network, norm)
    trained = {name: parameter.detach() for name, parameter in parameters if parameter.requires_grad}
    return trained | {name: buffer for name, buffer in buffers if name in statistics}


def frozen_sha256(network: nn.Module, held: Collection[str], quantize: QuantizeName = "off") -> str:
    """Hash the names, types, shapes and values of all tensors but those that a file holds.

    BatchNorm's number of batches is left out: nothing depends on it, and some files lack it.
    `held` are names in the network. With `quantize`, frozen weights are hashed as `quantize_frozen` would
    round them.
    """
    rounded = {
        name
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if quantize != "off" and parameter.ndim > 1 and not parameter.requires_grad
    }
    digest = hashlib.sha256()
    state = {
        canonical(key): (key, tensor)
        for key, tensor in network.state_dict().items()
        if key not in held and not key.endswith(COUNTER)
    }
    for name, (key, tensor) in sorted(state.items()):
        if key in rounded:
            tensor = rounded_weight(tensor, quantize, network)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()


def base_sources(record: OwnRecord, folder: Path, chain: Collection[Path], source: str) -> list[str | None]:
    """Candidates for the base of the checkpoint `source`, which lies in `folder`; the likeliest first.

    A file is looked for where the run found it; then at its relative path from the working directory and from
    every folder above the checkpoint, as a project may have been moved as a whole; then by its name beside
    the checkpoint. `chain` holds the checkpoints whose base this is; none can be its own base. Raises
    UserError where there is no such file.
    """
    given = record.spec.checkpoint
    certainly_no_file = record.base_path is None and (record.frozen_sha256 is not None or is_url(given or ""))
    if given is None or is_named(given) or certainly_no_file:
        return [given]
    file = local_path(given) or Path(given)
    recorded = Path(record.base_path or file)
    around = [parent / file for parent in (folder, *folder.parents)]
    candidates = map(file_in, (recorded, file, *around, folder / file.name))
    places = [place for place in candidates if os.path.isfile(place)]
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
            f"{folder / file.name} exists"
        )
    return usable

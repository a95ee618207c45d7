"""Export an adapter: write the file, check it in its runtime, and describe it beside it."""

import copy
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tinytl.errors import UserError, first_line
from tinytl.export.check import Comparison, compared, logits_in_batches, refuse_difference
from tinytl.export.check_images import CheckImages
from tinytl.export.eight_bits import make_exportable
from tinytl.export.formats import FORMATS, Format, FormatName
from tinytl.prediction.adapter import Adapter
from tinytl.prediction.description import Description
from tinytl.records.results import write_json
from tinytl.system.files import write_whole

log = logging.getLogger("tinytl")


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked; sizes in bytes."""

    path: Path
    size_bytes: int
    float32_bytes: int  # all tensors of the network in float32
    frozen: int  # elements of frozen weights of convolutions and linear layers
    in_8_bits: int  # how many of them the file holds in 8 bits
    comparison: Comparison


def export(adapter: Adapter, name: FormatName, in_8_bits: bool, path: Path, images: CheckImages) -> Exported:
    """Write `path` and, beside it, its description (`path`.json).

    Raises UserError, and leaves no file, where the result differs from PyTorch.
    """
    form = FORMATS[name]
    before = logits_in_batches(adapter.network, images.images)
    network = copy.deepcopy(adapter.network)
    held = make_exportable(network, in_8_bits and form.in_8_bits)
    network.requires_grad_(False)
    comparisons: list[Comparison] = []

    def write(temporary: Path) -> None:
        """Write the file and compare it with PyTorch, before it gets its name."""
        _write(form, name, network, adapter.description, temporary)
        after = logits_in_batches(form.run(temporary), images.images, form.any_batch)
        comparisons.append(compared(before, after, images, adapter.description.task == "multilabel"))
        refuse_difference(comparisons[0], name)

    write_whole(path, write)
    exported = Exported(
        path,
        path.stat().st_size,
        _float32_bytes(adapter.network),
        _frozen(adapter.network),
        held,
        comparisons[0],
    )
    write_json(beside(path), {**adapter.description.plain(), "export": _record(exported, name, form)})
    return exported


def _write(form: Format, name: FormatName, network: nn.Module, description: Description, path: Path) -> None:
    """Write a file. Raises UserError where the format's exporter does not know a part of the network."""
    try:
        form.write(network, description, path)
    except Exception as error:  # exporters raise errors of every kind for what they do not know
        reason = first_line(error)[:200]
        raise UserError(f"format={name}: {description.model} cannot be exported to it ({reason})") from error


def beside(path: Path) -> Path:
    """The JSON file that describes an exported file."""
    return path.with_name(f"{path.name}.json")


def _record(exported: Exported, name: FormatName, form: Format) -> dict[str, Any]:
    """What the JSON file says of the export."""
    return {
        "format": name,
        "any_batch": form.any_batch,
        "size_bytes": exported.size_bytes,
        "float32_bytes": exported.float32_bytes,
        "frozen": exported.frozen,
        "in_8_bits": exported.in_8_bits,
        "check": asdict(exported.comparison),
    }


def _float32_bytes(network: nn.Module) -> int:
    return sum(4 * tensor.numel() for tensor in network.state_dict().values())


def _frozen(network: nn.Module) -> int:
    """Elements of the frozen weights of convolutions and linear layers."""
    layers = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)

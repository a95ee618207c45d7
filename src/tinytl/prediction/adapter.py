"""Build the network of an adapter: the plain one, or one that predicts in little memory."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tinytl.engine import EnginePlan, make_lean
from tinytl.errors import UserError
from tinytl.methods import freeze
from tinytl.prediction.adapter_files import adapter_file, is_exported
from tinytl.prediction.description import Description, sha256_of
from tinytl.weights.adapter_files import check_config
from tinytl.weights.build import build_network
from tinytl.weights.check_own_record import check_record
from tinytl.weights.own_checkpoints import OwnRecord
from tinytl.weights.weight_files import read_weights

log = logging.getLogger("tinytl")
SOURCE_PARTS = 3  # of the file's path that exported files name: run, folder, file


@dataclass(frozen=True)
class Adapter:
    """A network in evaluation mode, its frozen weights rounded to 8 bits as in training."""

    network: Any
    description: Description
    record: OwnRecord
    file: Path


def load_adapter(source: str) -> Adapter:
    """Build the plain network of a run's folder, an adapter's folder or a file of trained weights.

    Raises UserError where there is none, or where its base cannot be found.
    """
    if is_exported(source):
        raise UserError(f"adapter={source}: an exported file; a run or an adapter is needed")
    file = adapter_file(source)
    content = read_weights(file, str(file))
    if content.record is None:
        raise UserError(f"adapter={source}: not an adapter: {file.name} has no record of a run")
    record = check_record(content.record, str(file))
    check_config(file, content.record, str(file))
    if not timm.is_model(record.spec.model):
        raise UserError(
            f"adapter={source}: of {record.spec.model}, which timm does not know; tinytl.load puts it into a "
            f"network of your own"
        )
    network = build_network(replace(record.spec, checkpoint=str(file)))  # its frozen weights are rounded
    freeze(network, record.method, record.blocks)
    return Adapter(network.eval(), _described(record, network, file), record, file)


def lean(adapter: Adapter, device: torch.device) -> nn.Module:
    """Convert the network for little memory, in place, on the device; return it in evaluation mode."""
    network = adapter.network.to(device)
    return make_lean(network, EnginePlan(recompute_above_px=None)).eval()


def _described(record: OwnRecord, network: Any, file: Path) -> Description:
    """Describe the classifier; what an older version did not record is said and replaced, or refused."""
    if record.resolution is None:
        raise UserError(f"checkpoint={file}: an older version wrote it: it does not say its resolution")
    names = record.class_names
    if names is None:
        log.warning("%s does not name its classes: they are called by their numbers", file)
        names = [str(number) for number in range(record.spec.num_classes)]
    if len(names) != record.spec.num_classes:
        raise UserError(f"checkpoint={file}: {len(names)} class names for {record.spec.num_classes} classes")
    mean, std = (
        [float(value) for value in getattr(record, key) or network.pretrained_cfg[key]]
        for key in ("mean", "std")
    )
    task = record.task or "multiclass"  # the only one that older versions and the library did not record
    return Description(
        names, task, record.resolution, mean, std, record.spec.model, record.spec.norm, record.method,
        record.quantize, "/".join(file.absolute().parts[-SOURCE_PARTS:]), sha256_of(file),
    )  # fmt: skip

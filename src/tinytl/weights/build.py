"""Build a network from its description, and load its weights."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tinytl.errors import UserError
from tinytl.methods import freeze
from tinytl.networks.architecture import architecture, head_name
from tinytl.networks.construct import build_on_meta, construct, new_head
from tinytl.networks.quantize import quantize_frozen
from tinytl.networks.spec import EMBEDDED, NetworkSpec
from tinytl.weights import checkpoints
from tinytl.weights.checkpoints import Checkpoint
from tinytl.weights.load_into_network import load_tensors
from tinytl.weights.named_weights import check_name
from tinytl.weights.own_checkpoints import OwnRecord, base_sources, frozen_sha256, trainable_state
from tinytl.weights.tensor_names import STATISTICS, canonical

log = logging.getLogger(__name__)

Chain = tuple[Path, ...]  # our own checkpoints, each of which was trained from the next one


def build_network(spec: NetworkSpec, class_names: Sequence[str] | None = None) -> Any:
    """Build the network on the default device and load its weights.

    The classifier is new, uniform in +-1/sqrt(fan-in), unless the checkpoint has one for as many
    classes. It is also new if `class_names` and the checkpoint name different classes.
    Raises UserError where the model is unknown, or the norm, the lite residual or the checkpoint does
    not fit it.
    """
    return _build(spec, (), class_names)


def _build(spec: NetworkSpec, chain: Chain, class_names: Sequence[str] | None = None) -> Any:
    """Build a network; `chain` holds our own checkpoints that were trained from it."""
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        network = construct(spec)
        if spec.checkpoint is None or not _load(network, spec, chain, class_names):
            new_head(network)
    return network


def _load(network: Any, spec: NetworkSpec, chain: Chain, class_names: Sequence[str] | None) -> bool:
    """Load the starting weights into the network; return whether they have a classifier for it."""
    source, head = spec.checkpoint or "", head_name(network)
    check_name(source, spec.model, spec.norm)
    if source == EMBEDDED:
        checkpoint = checkpoints.embedded(spec.model, spec.norm)
    else:
        checkpoint = checkpoints.read(source, spec.model, spec.net_config)
    if checkpoint.own:
        _check_model(checkpoint.own.spec, spec, source)
        checkpoint = _completed(checkpoint, checkpoint.own, chain)
    tensors = checkpoint.tensors
    if spec.lite_residual and not spec.lite_residual.pretrained:
        tensors = {key: value for key, value in tensors.items() if ".lite_residual." not in key}
    if checkpoint.own and _other_classes(checkpoint.own, class_names):
        log.warning("%s was trained for other classes: the classifier begins anew", source)
        tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{head}.")}
    if checkpoint.pretrained_cfg is not None:
        network.pretrained_cfg = {**network.pretrained_cfg, **checkpoint.pretrained_cfg}
    # The base of one of our own checkpoints, which replaces what the base lacks, is nothing to warn of.
    return load_tensors(network, tensors, head, source, warns=not chain)


def _check_model(trained: NetworkSpec, wanted: NetworkSpec, source: str) -> None:
    """Raise UserError where our own checkpoint is of another model or of another specialised network."""
    if trained.net_config != wanted.net_config:
        raise UserError(f"checkpoint={source}: weights of another specialised network")
    if trained.model != wanted.model:
        raise UserError(f"checkpoint={source}: weights of model={trained.model}, not {wanted.model}")


def _other_classes(record: OwnRecord, class_names: Sequence[str] | None) -> bool:
    """Whether the classes of a checkpoint and those asked for are both known, and differ."""
    if record.class_names is None or class_names is None:
        return False
    return record.class_names != list(class_names)


def _completed(checkpoint: Checkpoint, record: OwnRecord, chain: Chain) -> Checkpoint:
    """Complete one of our own checkpoints, which holds what was trained, by the frozen part of its base."""
    base = _base(checkpoint, record, chain)
    frozen = {canonical(key): value for key, value in base.state_dict().items()}
    statistics = {"mean": record.mean, "std": record.std}
    cfg = {**base.pretrained_cfg, **{key: tuple(value) for key, value in statistics.items() if value}}
    return replace(checkpoint, tensors={**frozen, **checkpoint.tensors}, pretrained_cfg=cfg)


def _check_names(checkpoint: Checkpoint, record: OwnRecord, base: Any) -> None:
    """Raise UserError where the checkpoint lacks what was trained from `base`, or holds more.

    Older versions also wrote the base's own BatchNorm statistics.
    """
    trained = {canonical(key) for key in trainable_state(base, record.spec.norm)}
    fixed = {canonical(key) for key in base.state_dict() if key.endswith(STATISTICS)} - trained
    wrong = sorted(trained.symmetric_difference(checkpoint.tensors) - fixed)
    if wrong:
        verb = "lacks" if wrong[0] in trained else "holds the untrained"
        raise UserError(
            f"checkpoint={checkpoint.source}: damaged: it {verb} {wrong[0]} ({len(wrong)} in all)"
        )


def _base(checkpoint: Checkpoint, record: OwnRecord, chain: Chain) -> Any:
    """The network that our own checkpoint was trained from; the hash of its frozen part must agree."""
    source, here = checkpoint.source, (checkpoint.path or Path(checkpoint.source)).resolve()
    if here in chain:
        raise UserError(f"checkpoint={source}: it is its own base, directly or through others")
    if record.frozen_sha256 and set(checkpoint.tensors) >= _names(record.spec):
        base = _begun(record, None, chain)  # everything was trained, so that any base will do
        _check_names(checkpoint, record, base)
        return base
    hashes: dict[str | None, str] = {}
    for name in base_sources(record, here.parent, (*chain, here), source):
        try:
            base = _begun(record, name, (*chain, here))
        except UserError as error:
            raise UserError(f"checkpoint={source}: its base cannot be used: {error}") from error
        _check_names(checkpoint, record, base)
        if record.frozen_sha256 is None:
            log.warning("%s is of an older version: that %s is its base cannot be checked", source, name)
            return base
        held = [key for key in base.state_dict() if canonical(key) in checkpoint.tensors]
        hashes[name] = frozen_sha256(base, held)
        if hashes[name] == record.frozen_sha256:
            return base
    name, sha256 = next(iter(hashes.items()))
    # Random numbers differ between kinds of processors and versions of PyTorch.
    name = name or f"the network that seed {record.spec.seed} draws on this machine"
    raise UserError(
        f"checkpoint={source}: {name} is not the base it was trained from: the SHA-256 of its frozen part is "
        f"{sha256}, not {record.frozen_sha256}"
    )


def _begun(record: OwnRecord, base: str | None, chain: Chain) -> Any:
    """The network with which the run of `record` started, with the weights of `base`."""
    network = _build(replace(record.spec, checkpoint=base), chain)
    freeze(network, record.method, record.blocks)
    quantize_frozen(network, record.quantize)
    return network


def _names(spec: NetworkSpec) -> set[str]:
    """Canonical names of all tensors of a network."""
    return {canonical(key) for key in build_on_meta(spec).state_dict()}


def head_classes(source: str, model: str) -> int:
    """The number of classes of a checkpoint's classifier. Raises UserError where it has none."""
    head = architecture(model).head
    weight = checkpoints.read(source, model).tensors.get(f"{head}.weight")
    if weight is None or weight.ndim == 0:
        raise UserError(f"checkpoint={source} has no classifier ({head})")
    return len(weight)

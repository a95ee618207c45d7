"""What a network's layers keep for the backward pass, counted on tensors that have shapes but no values."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from tinytl.engine.plan import EnginePlan
from tinytl.engine.swap import shapes_only

FALLBACK_SIZE = (3, 224, 224)  # of an image, where the network does not name one


@dataclass
class KeptTensors:
    """The storages that a forward pass keeps: their sizes, and which blocks and kinds of layers keep them."""

    input_size: tuple[int, ...]
    images: int = 1
    bytes: dict[int, int] = field(default_factory=dict)  # by storage
    by_block: dict[str, set[int]] = field(default_factory=dict)  # what each block keeps; "": outside of them
    inputs: dict[str, set[int]] = field(default_factory=dict)  # what each block is given
    layer: dict[int, str] = field(default_factory=dict)  # the kind of the first layer that keeps it

    def recomputed(self) -> list[str]:
        """The blocks that keep less if they keep their inputs and are computed again.

        An input may be kept by another block or layer anyway, and then costs nothing. So one block at a
        time is decided on, given what all others keep, until nothing changes.
        """
        chosen = set(self.inputs)
        holders = Counter[int]()  # storage -> how many blocks keep it
        for name, kept in self.by_block.items():
            holders.update(self.inputs[name] if name in chosen else kept)
        changed = True
        while changed:
            changed = False
            for name, inputs in self.inputs.items():
                kept = self.by_block.get(name, set())
                holders.subtract(inputs if name in chosen else kept)
                was_chosen = name in chosen
                if self._extra(inputs, holders) < self._extra(kept, holders):
                    chosen.add(name)
                else:
                    chosen.discard(name)
                changed = changed or was_chosen != (name in chosen)
                holders.update(inputs if name in chosen else kept)
        return [name for name in self.inputs if name in chosen]

    def _extra(self, storages: set[int], holders: Counter[int]) -> int:
        """The bytes of those storages that no other block keeps."""
        return sum(self.bytes[storage] for storage in storages if not holders[storage])

    def mb_an_image(self, recomputed: list[str]) -> dict[str, float]:
        """What the layers outside of recomputed blocks keep, by their kind: MB an image, the most first."""
        outside = [kept for name, kept in self.by_block.items() if name not in recomputed]
        totals = Counter[str]()
        for storage in set().union(*outside):
            totals[self.layer[storage]] += self.bytes[storage]
        return {kind: size / 1e6 / self.images for kind, size in totals.most_common()}


def kept_tensors(network: nn.Module, blocks: list[str]) -> KeptTensors | None:
    """Count in one forward pass; None where it cannot be done without values.

    A block counts if it is called once, with tensors, and returns one tensor.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size") or FALLBACK_SIZE)
    images = 2 if _takes_batch_statistics(network) else 1
    counting = _Counting(network, blocks, KeptTensors(size, images))
    try:
        batch = torch.empty(images, *size, device="meta", dtype=floating_dtype(network))
        with torch.enable_grad(), _whole_maps(network), shapes_only(network), counting.running():
            network(batch)
    except Exception:  # whatever a network raises that needs values, or images of another shape
        return None
    return counting.result()


class _Counting:
    """Notes, while a network computes, which storages each of its blocks keeps."""

    def __init__(self, network: nn.Module, blocks: list[str], kept: KeptTensors) -> None:
        self.network, self.kept = network, kept
        self.not_kept: set[int] = set()  # parameters and buffers, which are there anyway
        self.block_of = {network.get_submodule(name): name for name in blocks}
        self.running_blocks, self.running_layers = [""], [network]
        self.refused: set[str] = set()
        self.alive: list[Tensor] = []  # so that no storage takes another's address

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is kept in this context; parameters and buffers have their shapes alone by now."""
        self.not_kept = {_key(t) for t in (*self.network.parameters(), *self.network.buffers())}
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            with saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> KeptTensors:
        """What was counted; what a refused block keeps counts as outside of blocks."""
        for name in self.refused:
            self.kept.inputs.pop(name, None)
            self.kept.by_block.setdefault("", set()).update(self.kept.by_block.pop(name, set()))
        return self.kept

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.running_layers.append(module)
        name = self.block_of.get(module)
        if name is None:
            return
        self.running_blocks.append(name)
        if name in self.kept.inputs or not inputs or not isinstance(inputs[0], Tensor):
            self.refused.add(name)
        tensors = [i for i in inputs if isinstance(i, Tensor)]
        self.kept.inputs[name] = {key for key in map(self._count, tensors) if key is not None}
        self.kept.by_block.setdefault(name, set())

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self.running_layers.pop()
        name = self.block_of.get(module)
        if name is not None:
            self.running_blocks.pop()
            if not isinstance(output, Tensor):
                self.refused.add(name)

    def _pack(self, tensor: Tensor) -> Tensor:
        key = self._count(tensor)
        if key is not None:
            self.kept.by_block.setdefault(self.running_blocks[-1], set()).add(key)
            self.kept.layer.setdefault(key, type(self.running_layers[-1]).__name__)
        return tensor

    def _count(self, tensor: Tensor) -> int | None:
        key = _key(tensor)
        if key in self.not_kept:
            return None
        self.alive.append(tensor.detach())
        self.kept.bytes[key] = tensor.untyped_storage().nbytes()
        return key


def _takes_batch_statistics(network: nn.Module) -> bool:
    """Whether a BatchNorm normalises by its batch, for which one value a channel is not enough."""
    return any(isinstance(module, _BatchNorm) and module.training for module in network.modules())


@contextmanager
def _whole_maps(network: nn.Module) -> Iterator[None]:
    """Compute bottlenecks in one slice each, which keep the same and take less time."""
    sliced: list[Any] = [m for m in network.modules() if isinstance(getattr(m, "plan", None), EnginePlan)]
    plans = [module.plan for module in sliced]
    for module, plan in zip(sliced, plans, strict=True):
        module.plan = replace(plan, slice_kb=None)
    try:
        yield
    finally:
        for module, plan in zip(sliced, plans, strict=True):
            module.plan = plan


def floating_dtype(network: nn.Module) -> torch.dtype:
    """The type of the network's first parameter in floating point; float32 if there is none."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _key(tensor: Tensor) -> int:
    """The address of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def _unpack(tensor: Tensor) -> Tensor:
    return tensor

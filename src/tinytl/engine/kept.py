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
from tinytl.engine.swap import swapped

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
        holders = Counter[int]()
        for name, kept in self.by_block.items():
            holders.update(self.inputs[name] if name in chosen else kept)
        changed = True
        while changed:
            changed = False
            for name, inputs in self.inputs.items():
                kept = self.by_block.get(name, set())
                holders.subtract(inputs if name in chosen else kept)
                if (self._extra(inputs, holders) < self._extra(kept, holders)) != (name in chosen):
                    chosen ^= {name}
                    changed = True
                holders.update(inputs if name in chosen else kept)
        return [name for name in self.inputs if name in chosen]

    def _extra(self, storages: set[int], holders: Counter[int]) -> int:
        return sum(self.bytes[storage] for storage in storages if not holders[storage])

    def mb_an_image(self, recomputed: list[str]) -> dict[str, float]:
        """What the layers outside of recomputed blocks keep, by their kind: MB an image, the most first."""
        left = set().union(*(kept for name, kept in self.by_block.items() if name not in recomputed))
        totals = Counter[str]()
        for storage in left:
            totals[self.layer[storage]] += self.bytes[storage]
        return {kind: size / 1e6 / self.images for kind, size in totals.most_common()}


def kept_tensors(network: nn.Module, blocks: list[str]) -> KeptTensors | None:
    """Count in one forward pass; None where it cannot be done without values.

    A block counts if it is called once, with tensors, and returns one tensor.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size") or FALLBACK_SIZE)
    on_meta = {id(t): _on_meta(t) for t in (*network.parameters(), *network.buffers())}
    kept = KeptTensors(size, 2 if _takes_batch_statistics(network) else 1)
    counting = _Counting(network, blocks, kept, {_key(tensor) for tensor in on_meta.values()})
    try:
        images = torch.empty(kept.images, *size, device="meta", dtype=_dtype(network))
        with (
            torch.enable_grad(),
            _whole_maps(network),
            swapped(network, lambda tensor: on_meta[id(tensor)]),
            counting.running(),
        ):
            network(images)
    except Exception:  # whatever a network raises that needs values, or images of another shape
        return None
    return counting.result()


class _Counting:
    def __init__(self, network: nn.Module, blocks: list[str], kept: KeptTensors, not_kept: set[int]) -> None:
        self.kept, self.not_kept = kept, not_kept  # parameters and buffers are there anyway
        self.block_of = {network.get_submodule(name): name for name in blocks}
        self.running_blocks, self.running_layers = [""], [network]
        self.refused: set[str] = set()
        self.alive: list[Tensor] = []  # so that no storage takes another's address

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is kept in this context."""
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
            self.kept.layer.setdefault(key, _kind(self.running_layers))
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


def _kind(running: list[nn.Module]) -> str:
    return type(running[-1]).__name__


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _unpack(tensor: Tensor) -> Tensor:
    return tensor

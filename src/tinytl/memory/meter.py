"""Measure the live tensor bytes of one training step, exactly and repeatably.

A dispatch mode sees every operator's outputs, in the forward and the backward pass, on any device. Each
storage is counted once, from its first appearance until it is freed. Scratch memory inside a kernel is
not a tensor and is not seen. The step is recorded as a timeline of allocations and frees; the kind of each
storage (parameter, gradient, ...) is entered when it becomes known.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tinytl.memory.graph import layer_of_running_node, note_layer, saved_by_graph, tensors_in
from tinytl.memory.timeline import KINDS, Kind, Storage, Timeline, total_bytes


@dataclass(frozen=True)
class MemoryReport:
    """Live tensor bytes of one training step."""

    peak_bytes: int  # the most at any moment of the step
    end_of_forward_bytes: int  # between the forward and the backward pass
    peak_split_bytes: dict[Kind, int]  # the peak by kind; buffers count as parameters
    kept_bytes: int  # activations that live at the end of the forward pass
    kept_by_operator_bytes: dict[str, int]  # these by the operators that hold them; by several: "a + b"
    peak_by_layer_bytes: dict[str, int]  # activations and transients at the peak, by the layer that made them

    @property
    def peak_mb(self) -> float:
        """The peak in MB of 1e6 bytes."""
        return self.peak_bytes / 1e6


class LiveMemory(TorchDispatchMode):
    """The meter of one training step.

        with LiveMemory(network, optimizer, batch) as live:
            loss = loss_function(network(images), labels)
            live.end_of_forward(loss)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        report = live.report()

    Begin with cleared gradients, at the second step or later: an optimizer makes its state in the first.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer | None, batch: Any) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer
        self.timeline = Timeline()
        self._live: dict[int, tuple[int, weakref.ref]] = {}  # address of a storage -> its number, a reference
        self._end_of_forward: int | None = None  # number of events until then
        self._hooks: list[Any] = []
        self._gradient_hooks: dict[Tensor, Any] = {}
        self._names = {module: name or "network" for name, module in network.named_modules()}
        self._running: list[str] = []  # layers whose forward pass is running, outermost first
        self._label(_network_tensors(network), "parameters")
        self._label(_gradients(network), "gradients")
        self._label(_optimizer_state(optimizer), "optimizer")
        self._label(tensors_in(batch), "batch")

    def __enter__(self) -> "LiveMemory":
        for parameter in self.network.parameters():
            if parameter.requires_grad and parameter.grad is None:
                hook = parameter.register_post_accumulate_grad_hook(self._label_gradient)
                self._gradient_hooks[parameter] = hook
        self._hooks.append(register_module_forward_pre_hook(self._enter_layer))
        self._hooks.append(register_module_forward_hook(self._leave_layer))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in (*self._hooks, *self._gradient_hooks.values()):
            hook.remove()
        self._label(_optimizer_state(self.optimizer), "optimizer")
        self._label(_gradients(self.network), "gradients")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._number(tensor)
        return result

    def batch(self, batch: Any) -> None:
        """Tell the meter of a further micro-batch of the step."""
        self._label(tensors_in(batch), "batch")

    def end_of_forward(self, loss: Tensor) -> None:
        """Mark the end of a forward pass; of several micro-batches the last is reported.

        What the graph keeps is found from `loss`.
        """
        self._end_of_forward = len(self.timeline)
        for number, _ in self._live.values():
            storage = self.timeline.storages[number]
            storage.known_kind = storage.known_kind or "activations"
        for operator, tensor in saved_by_graph(loss):
            self.timeline.storages[self._number(tensor)].holders.add(operator)

    def report(self) -> MemoryReport:
        """Replay the timeline and report the step."""
        at_end_of_forward = self.timeline.alive_after(self._end_of_forward)
        kept = [storage for storage in at_end_of_forward if storage.kind == "activations"]
        at_peak = self.timeline.alive_after(self.timeline.events_up_to_peak())
        return MemoryReport(
            peak_bytes=total_bytes(at_peak),
            end_of_forward_bytes=total_bytes(at_end_of_forward),
            peak_split_bytes=_by_kind(at_peak),
            kept_bytes=total_bytes(kept),
            kept_by_operator_bytes=_by_operator(kept),
            peak_by_layer_bytes=_by_layer(at_peak),
        )

    def _enter_layer(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._running.append(self._names[module])

    def _leave_layer(self, module: nn.Module, _: Any, output: Any) -> None:
        if module in self._names:
            self._running.pop()
            for tensor in tensors_in(output):
                note_layer(tensor, self._names[module])

    def _current_layer(self) -> str:
        """The layer whose forward or backward pass is running; between layers, the operator."""
        return self._running[-1] if self._running else layer_of_running_node()

    def _number(self, tensor: Tensor) -> int:
        """The number of the tensor's storage, which enters the timeline at its first appearance."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][0]
        number = self.timeline.appears(Storage(storage.nbytes(), self._current_layer()))
        # The reference lives as long as the storage itself, not as its Python wrapper.
        self._live[key] = (number, weakref.ref(storage, lambda _: self._freed(key, number)))
        return number

    def _freed(self, key: int, number: int) -> None:
        if key in self._live and self._live[key][0] == number:
            del self._live[key]
        self.timeline.freed(number)

    def _label(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Enter what storages hold, if that is not known yet."""
        for tensor in tensors:
            storage = self.timeline.storages[self._number(tensor)]
            if storage.known_kind is None or kind == "gradients":  # an activation's may become a gradient's
                storage.known_kind = kind

    def _label_gradient(self, parameter: Tensor) -> None:
        """Label a gradient that has appeared; then the hook goes, because layers act otherwise with hooks."""
        self._label([parameter.grad] if parameter.grad is not None else [], "gradients")
        self._gradient_hooks.pop(parameter).remove()


def _by_kind(storages: Iterable[Storage]) -> dict[Kind, int]:
    """Bytes by kind, for every kind."""
    split: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for storage in storages:
        split[storage.kind] += storage.size
    return split


def _by_operator(storages: Iterable[Storage]) -> dict[str, int]:
    """Bytes by the operators that hold them, the most first."""
    sizes = Counter[str]()
    for storage in storages:
        sizes[" + ".join(sorted(storage.holders)) or "not held by the graph"] += storage.size
    return dict(sizes.most_common())


def _by_layer(storages: Iterable[Storage]) -> dict[str, int]:
    """Bytes of activations and transients by the layer that made them, the most first."""
    sizes = Counter[str]()
    for storage in storages:
        if storage.kind in ("activations", "transients"):
            sizes[storage.layer or "between layers"] += storage.size
    return dict(sizes.most_common())


def _network_tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    return (p.grad for p in network.parameters() if p.grad is not None)


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    return tensors_in(dict(optimizer.state)) if optimizer else iter(())

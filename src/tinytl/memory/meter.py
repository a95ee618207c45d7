"""Measure the live tensor bytes of one training step, exactly and repeatably.

A dispatch mode sees every operator's outputs, in the forward and the backward pass, on any device. Each
storage is counted once, from its first appearance until it is freed. Scratch memory inside a kernel is
not a tensor and is not seen. The step is recorded as a timeline of allocations and frees; the kind of each
storage (parameter, gradient, ...) is entered when it becomes known.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Kind = Literal["parameters", "activations", "gradients", "optimizer", "batch", "transients"]
LAYER = "tinytl layer"  # key in the metadata of a node of the autograd graph
KINDS: tuple[Kind, ...] = ("parameters", "activations", "gradients", "optimizer", "batch", "transients")


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


@dataclass
class _Storage:
    size: int
    layer: str
    kind: Kind | None = None
    holders: set[str] = field(default_factory=set)


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
        self.storages: list[_Storage] = []
        self.timeline: list[int] = []  # +(i + 1): storage i appears; -(i + 1): it is freed
        self.end_of_forward_at: int | None = None
        self._live: dict[int, tuple[int, weakref.ref]] = {}  # address of the storage -> index
        self._hooks: list[Any] = []
        self._gradient_hooks: dict[Tensor, Any] = {}
        self._names = {module: name or "network" for name, module in network.named_modules()}
        self._running: list[str] = []  # layers whose forward pass is running, outermost first
        self._known(_network_tensors(network), "parameters")
        self._known(_gradients(network), "gradients")
        self._known(_optimizer_state(optimizer), "optimizer")
        self._known(_tensors(batch), "batch")

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
        self._known(_optimizer_state(self.optimizer), "optimizer")
        self._known(_gradients(self.network), "gradients")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._index(tensor)
        return result

    def _enter_layer(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._running.append(self._names[module])

    def _leave_layer(self, module: nn.Module, _: Any, output: Any) -> None:
        if module in self._names:
            self._running.pop()
            for tensor in _tensors(output):
                if tensor.grad_fn is not None:  # noted on the node: a reference would keep what it saved
                    _notes(tensor.grad_fn).setdefault(LAYER, self._names[module])

    def _current_layer(self) -> str:
        """The layer whose forward or backward pass is running; between layers, the operator."""
        if self._running:
            return self._running[-1]
        node = torch._C._current_autograd_node()
        return "" if node is None else _notes(node).get(LAYER, _operator_name(node))

    def batch(self, batch: Any) -> None:
        """Tell the meter of a further micro-batch of the step."""
        self._known(_tensors(batch), "batch")

    def end_of_forward(self, loss: Tensor) -> None:
        """Mark the end of a forward pass; of several micro-batches the last is reported.

        What the graph keeps is found from `loss`.
        """
        self.end_of_forward_at = len(self.timeline)
        for index in self._live_indices():
            if self.storages[index].kind is None:
                self.storages[index].kind = "activations"
        for operator, tensor in _saved_by_graph(loss):
            self.storages[self._index(tensor)].holders.add(operator)

    def report(self) -> MemoryReport:
        """Replay the timeline and report the step."""
        at_end_of_forward = self._alive_after(self.end_of_forward_at)
        kept = {index for index in at_end_of_forward if self.storages[index].kind == "activations"}
        peak_at, peak = self._peak()
        at_peak = self._alive_after(peak_at)
        split: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        for index in at_peak:
            split[self.storages[index].kind or "transients"] += self.storages[index].size
        by_layer = Counter[str]()
        for index in at_peak:
            if (self.storages[index].kind or "transients") in ("activations", "transients"):
                by_layer[self.storages[index].layer or "between layers"] += self.storages[index].size
        by_operator: dict[str, int] = {}
        for index in kept:
            name = " + ".join(sorted(self.storages[index].holders)) or "not held by the graph"
            by_operator[name] = by_operator.get(name, 0) + self.storages[index].size
        return MemoryReport(
            peak_bytes=peak,
            end_of_forward_bytes=self._bytes(at_end_of_forward),
            peak_split_bytes=split,
            kept_bytes=self._bytes(kept),
            kept_by_operator_bytes=dict(sorted(by_operator.items(), key=lambda item: -item[1])),
            peak_by_layer_bytes=dict(by_layer.most_common()),
        )

    def _index(self, tensor: Tensor) -> int:
        """The number of the tensor's storage, which enters the timeline at its first appearance."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][0]
        index = len(self.storages)
        self.storages.append(_Storage(storage.nbytes(), self._current_layer()))
        self.timeline.append(index + 1)
        # The reference lives as long as the storage itself, not as its Python wrapper.
        self._live[key] = (index, weakref.ref(storage, lambda _: self._freed(key, index)))
        return index

    def _freed(self, key: int, index: int) -> None:
        if key in self._live and self._live[key][0] == index:
            del self._live[key]
        self.timeline.append(-(index + 1))

    def _known(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        for tensor in tensors:
            storage = self.storages[self._index(tensor)]
            if storage.kind is None or kind == "gradients":  # an activation's storage may become a gradient's
                storage.kind = kind

    def _label_gradient(self, parameter: Tensor) -> None:
        """Label a gradient that has appeared; then the hook goes, because layers act otherwise with hooks."""
        self._known([parameter.grad] if parameter.grad is not None else [], "gradients")
        self._gradient_hooks.pop(parameter).remove()

    def _live_indices(self) -> list[int]:
        return [index for index, _ in self._live.values()]

    def _alive_after(self, events: int | None) -> set[int]:
        alive: set[int] = set()
        for event in self.timeline[:events]:
            if event > 0:
                alive.add(event - 1)
            else:
                alive.discard(-event - 1)
        return alive

    def _bytes(self, indices: Iterable[int]) -> int:
        return sum(self.storages[index].size for index in indices)

    def _peak(self) -> tuple[int, int]:
        """Return (number of events up to the peak, bytes live then)."""
        live = peak = peak_at = 0
        for position, event in enumerate(self.timeline, start=1):
            size = self.storages[abs(event) - 1].size
            live += size if event > 0 else -size
            if live > peak:
                peak, peak_at = live, position
        return peak_at, peak


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _network_tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    return (p.grad for p in network.parameters() if p.grad is not None)


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    return _tensors(dict(optimizer.state)) if optimizer else iter(())


def _saved_by_graph(loss: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (operator, tensor) of everything that the graph of `loss` keeps for the backward pass."""
    queue, seen = [loss.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
        for tensor in _saved_by_node(node):
            yield _operator_name(node), tensor


def _saved_by_node(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            yield from _tensors(getattr(node, name))


def _notes(node: Any) -> dict[str, str]:
    return node.metadata


def _operator_name(node: Any) -> str:
    return node.name().rsplit("::", 1)[-1].rstrip("0123456789").removesuffix("Backward")

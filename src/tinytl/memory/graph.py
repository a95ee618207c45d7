"""The autograd graph of a loss: what its nodes keep for the backward pass, and which layer made them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

LAYER = "tinytl layer"  # key in the metadata of a node


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def note_layer(output: Tensor, name: str) -> None:
    """Note which layer made a tensor, unless a layer inside of it has made it.

    It is noted on the node: a reference to the tensor would keep what its node has saved.
    """
    node: Any = output.grad_fn
    if node is not None:
        node.metadata.setdefault(LAYER, name)


def layer_of_running_node() -> str:
    """The layer whose backward pass is running, or else the operator; empty outside of backward passes."""
    node: Any = torch._C._current_autograd_node()
    return "" if node is None else node.metadata.get(LAYER, _operator_name(node))


def saved_by_graph(loss: Tensor) -> Iterator[tuple[str, Tensor]]:
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
    """Yield what a node of PyTorch's own operators, or of a torch.autograd.Function, has saved."""
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            yield from tensors_in(getattr(node, name))


def _operator_name(node: Any) -> str:
    """The operator of a node: `Convolution` for `torch::autograd::ConvolutionBackward0`."""
    return node.name().rsplit("::", 1)[-1].rstrip("0123456789").removesuffix("Backward")

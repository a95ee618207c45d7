"""Count training memory as the paper does, for comparing with its tables.

total = parameters (4 bytes each if trainable, 1 if frozen) + batch size x peak, where the peak is the
maximum, over the layers of one image's forward pass, of the layer's temporaries + the activations saved so
far + the input of the residual connection around it. Gradients, optimizer state and the backward pass are
not counted. (TinyTL, section 4.1 and appendix; and the published profiler.)
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tinytl.methods import freeze
from tinytl.networks.blocks import block_names, classifier_parameters, has_shortcut
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualBlock, LiteResidualConfig
from tinytl.networks.proxylessnas import ARCHITECTURES
from tinytl.networks.spec import NetworkSpec

FLOAT_BYTES = 4
IMAGES = 2  # in the counting pass: torch's GroupNorm refuses one image where a group is a single value
# Class names of torch's and timm's activations. For the first kind one bit per element is enough for the
# gradient; for the second the input is kept (paper, Table 1).
ONE_BIT = {"relu", "relu6", "leakyrelu", "hardtanh", "hardsigmoid"}
SMOOTH = {
    *("sigmoid", "tanh", "silu", "swish", "hardswish", "hardswishme", "gelu", "gelutanh", "quickgelu"),
    *("mish", "mishme", "hardmish", "elu", "celu", "selu", "prelu", "softplus"),
}
ACTIVATIONS = ONE_BIT | SMOOTH


@dataclass(frozen=True)
class PaperCount:
    """The paper's count for one network."""

    total_params: int
    trainable_params: int
    params_bytes: int
    activation_bytes_per_image: float

    def total_bytes(self, batch_size: int) -> float:
        """Return the bytes of the parameters and of a batch's activations."""
        return self.params_bytes + batch_size * self.activation_bytes_per_image


def count_as_paper(spec: NetworkSpec, method: str, resolution: int, blocks: int | None = None) -> PaperCount:
    """Count by the convention of the paper's tables.

    There ProxylessNAS has the lite residual modules under every method (Table 2); other networks (Table 3)
    have them only if `spec` says so.
    """
    if spec.lite_residual is None and spec.model in ARCHITECTURES:
        spec = replace(spec, lite_residual=LiteResidualConfig())
    return count_bare(spec, method, resolution, blocks)


def count_bare(spec: NetworkSpec, method: str, resolution: int, blocks: int | None = None) -> PaperCount:
    """Count the network that `spec` describes, trained by `method` on images of `resolution` px.

    With `blocks` only that many of the last blocks train, and nothing is kept before them.
    """
    network = build_on_meta(spec)
    freeze(network, method, blocks)
    return count(network, resolution, blocks)


def count(network: Any, resolution: int, blocks: int | None = None) -> PaperCount:
    """Count a timm model on the meta device, by the `requires_grad` of its parameters."""
    parameters = list(network.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    head = {id(p) for p in classifier_parameters(network)}
    first = network.get_submodule(block_names(network)[-blocks]) if blocks else None  # block that trains
    enters_body = any(p.requires_grad and id(p) not in head for p in parameters)
    counter = _Counter(backward_enters_body=enters_body and blocks is None)
    handles = [handle for module in network.modules() for handle in counter.watch(module)]
    if first is not None:
        handles.append(first.register_forward_pre_hook(counter.enter_body))
    network.eval()
    with torch.no_grad():
        network(torch.empty(IMAGES, 3, resolution, resolution, device="meta"))
    for handle in handles:
        handle.remove()
    return PaperCount(total, trainable, FLOAT_BYTES * trainable + (total - trainable), counter.peak)


class _Counter:
    """Adds up the bytes of one image's forward pass, layer by layer."""

    def __init__(self, backward_enters_body: bool) -> None:
        self.backward_enters_body = backward_enters_body
        self.saved = self.peak = self.skip = 0.0
        self.outer_skips: list[float] = []

    def watch(self, module: nn.Module) -> Iterator[Any]:
        """Register the hooks that count a module; yield their handles."""
        if _has_skip(module):
            yield module.register_forward_pre_hook(self._enter_skip)
            yield module.register_forward_hook(self._leave_skip)
        if isinstance(module, _ConvNd | nn.Linear):
            yield module.register_forward_hook(self._convolution_or_linear)
        elif isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm):
            yield module.register_forward_pre_hook(self._norm)  # before the activation that timm puts in it
        elif type(module).__name__.lower() in ACTIVATIONS:
            yield module.register_forward_pre_hook(self._activation)

    def enter_body(self, *_: Any) -> None:
        """Note that from here on the backward pass needs activations."""
        self.backward_enters_body = True

    def _enter_skip(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.outer_skips.append(self.skip)
        self.skip = args[0].numel() * FLOAT_BYTES / IMAGES

    def _leave_skip(self, *_: Any) -> None:
        self.skip = self.outer_skips.pop()

    def _convolution_or_linear(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        input_bytes = args[0].numel() * FLOAT_BYTES / IMAGES
        output_bytes = output.numel() * FLOAT_BYTES / IMAGES / getattr(module, "groups", 1)
        self._add(input_bytes + output_bytes, input_bytes if module.weight.requires_grad else 0)

    def _norm(self, module: Any, args: tuple[Tensor, ...]) -> None:
        input_bytes = args[0].numel() * FLOAT_BYTES / IMAGES
        self._add(input_bytes, input_bytes if module.weight.requires_grad else 0)

    def _activation(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        elements = args[0].numel() / IMAGES
        saved = elements / 8 if type(module).__name__.lower() in ONE_BIT else elements * FLOAT_BYTES
        self._add(elements * FLOAT_BYTES, saved if self.backward_enters_body else 0)

    def _add(self, temporary_bytes: float, saved_bytes: float) -> None:
        # As in the published profiler, sums are float32: its figures are rounded to a few bytes.
        self.peak = max(self.peak, _float32(_float32(temporary_bytes + self.saved) + self.skip))
        self.saved = _float32(self.saved + saved_bytes)


def _float32(number: float) -> float:
    return ctypes.c_float(number).value


def _has_skip(module: nn.Module) -> bool:
    """Whether the module holds its input until its end, to add it to its output."""
    if isinstance(module, LiteResidualBlock):
        module = module.main_branch
    return has_shortcut(module)

"""Methods: each is a rule that decides for every parameter whether it trains.

To add a method, add an entry to METHODS and a file `conf/method/NAME.yaml`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from tinytl.errors import UserError
from tinytl.networks.blocks import before_last_blocks, classifier_parameters
from tinytl.networks.lean_mark import is_lean
from tinytl.networks.lite_residual import LiteResidual, has_lite_residuals
from tinytl.networks.norms import NormName, check_norm_name


@dataclass(frozen=True)
class Role:
    """What a rule knows of a parameter."""

    kind: Literal["conv", "norm", "linear", "other"]  # of the layer that holds it
    tensor: str  # its name in that layer: "weight" or "bias"
    part: Literal["backbone", "lite_residual", "head"]
    is_last_lite_shift: bool = False  # shift of a lite residual's last norm
    is_last_conv: bool = False  # of the backbone's last convolution, in the order of its layers


@dataclass(frozen=True)
class Method:
    """A rule, its description, and what is known of its accuracy.

    `gain_kept` is for `method=auto`. It maps the share of the blocks that train to the share that is kept of
    the method's gain in accuracy over training the classifier alone. If it is empty, `method=auto` never
    chooses the method, because the paper has no table of it.
    """

    trains: Callable[[Role], bool]
    description: str  # what trains
    needs_lite_residual: bool = False
    gain_kept: Mapping[float, float] = field(default_factory=dict)


def _bias(role: Role) -> bool:
    return role.part == "head" or role.tensor == "bias"


def _norm_last(role: Role) -> bool:
    return role.part == "head" or role.kind == "norm"


def _tinytl_l(role: Role) -> bool:
    return role.part in ("head", "lite_residual")


def _tinytl(role: Role) -> bool:
    # The shift of the lite residual's last norm is added at the same place as the main branch's last
    # bias and does the same work, so the published code freezes it.
    return not role.is_last_lite_shift and (_tinytl_l(role) or _bias(role))


def _tinytl_last_two(role: Role) -> bool:
    return role.is_last_conv or _tinytl(role)


AUTO = "auto"  # not a method: lets `tinytl.planner.method` choose one
# Measured on one data set for `tinytl` (0.25, 0.5) and `full` (docs/results.md, "Which blocks"). The figure
# at 0.75 is interpolated linearly. Other methods are given the figures of `tinytl`.
KEPT_BY_TINYTL = {0.25: 0.77, 0.5: 0.92, 0.75: 0.96, 1.0: 1.0}
KEPT_BY_FULL = {0.25: 0.88, 0.5: 0.94, 1.0: 1.0}
# Ordered by the memory that they need, roughly, least first.
METHODS = {
    "last": Method(lambda role: role.part == "head", "the classifier", gain_kept={1.0: 1.0}),
    "bias": Method(_bias, "biases and the classifier (TinyTL-B)", gain_kept=KEPT_BY_TINYTL),
    "norm_last": Method(_norm_last, "norm layers and the classifier", gain_kept=KEPT_BY_TINYTL),
    "tinytl_l": Method(
        _tinytl_l, "lite residuals and the classifier (TinyTL-L)", True, gain_kept=KEPT_BY_TINYTL
    ),
    "tinytl": Method(
        _tinytl, "lite residuals, biases and the classifier (TinyTL-L+B)", True, gain_kept=KEPT_BY_TINYTL
    ),
    "tinytl_last_two": Method(
        _tinytl_last_two, "lite residuals, biases, and the weights of the last two layers", True
    ),
    "full": Method(lambda role: True, "every parameter", gain_kept=KEPT_BY_FULL),
}


def freeze(network: Any, name: str, blocks: int | None = None) -> None:
    """Set `requires_grad` of every parameter by the method's rule; assert that none was missed.

    `network` is a timm model, or has its layers named (`networks.blocks.name_layers`). With `blocks`, only
    that many blocks at the end and the layers after them train, and back-propagation stops there (the sparse
    update of Lin et al., "On-Device Training Under 256KB Memory", arXiv 2206.15472, by whole blocks).

    Raises UserError for an unknown method, for one that needs lite residuals where the network has none, for
    more blocks than there are, and for a network that is lean already.
    """
    method = METHODS.get(name)
    if method is None:
        raise UserError(f"method={name}: unknown; one of {', '.join(METHODS)}")
    if is_lean(network):
        raise UserError(f"method={name}: the network is lean already; freeze it before make_lean")
    if method.needs_lite_residual and not has_lite_residuals(network):
        raise UserError(f"method={name}: the network has no lite residual modules to train")
    early = set() if blocks is None else set(before_last_blocks(network, blocks))
    decided: dict[int, bool] = {}
    for parameter_name, parameter, role in roles(network):
        trains = method.trains(role) and parameter_name not in early
        parameter.requires_grad = decided[id(parameter)] = trains
    # Read back from the network: every parameter was decided on, and the classifier trains.
    actual = {id(p): p.requires_grad for p in network.parameters()}
    assert actual == decided, "a parameter has no role"
    assert all(p.requires_grad for p in classifier_parameters(network)), "the classifier is frozen"


def roles(network: Any) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Yield (name, parameter, role) of every parameter of a timm model, shared ones once."""
    head = {id(p) for p in classifier_parameters(network)}
    lite = {name: m for name, m in network.named_modules() if isinstance(m, LiteResidual)}
    in_lite = {id(p) for m in lite.values() for p in m.parameters()}
    last_shifts = {id(m.final_bn.bias) for m in lite.values()}
    last_conv = _last_conv(network, head | in_lite)
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        for tensor, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            part = "backbone"
            if id(parameter) in head:
                part = "head"
            elif id(parameter) in in_lite:
                part = "lite_residual"
            role = Role(_kind(module), tensor, part, id(parameter) in last_shifts, module is last_conv)
            yield f"{prefix}.{tensor}", parameter, role


def _last_conv(network: nn.Module, others: set[int]) -> nn.Module | None:
    """The last convolution none of whose parameters is among `others`."""
    convs = [module for module in network.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    return next((conv for conv in reversed(convs) if id(conv.weight) not in others), None)


def _kind(module: nn.Module) -> Literal["conv", "norm", "linear", "other"]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm):
        return "norm"
    return "linear" if isinstance(module, nn.Linear) else "other"


def set_train_mode(network: nn.Module, norm: NormName) -> None:
    """Put modules that train into training mode, and frozen ones into evaluation mode.

    A module whose parameters are all frozen has no dropout and uses its stored BatchNorm statistics.
    With norm=bn_frozen every BatchNorm uses its stored statistics, trainable or not.
    Raises UserError for an unknown norm.
    """
    check_norm_name(norm)
    network.train()
    for module in network.modules():
        if _is_frozen(module) or (norm == "bn_frozen" and isinstance(module, _BatchNorm)):
            module.eval()


def changing_statistics(network: nn.Module, norm: NormName) -> set[str]:
    """Names of the BatchNorm statistics that do not come with the backbone.

    They are those of lite residual modules, and those that training changes: with another norm than
    bn_frozen, those of layers that are not frozen.
    """
    names: set[str] = set()
    for prefix, module in network.named_modules():
        if getattr(module, "running_var", None) is None:
            continue
        changes = ".lite_residual." in f".{prefix}" or (norm != "bn_frozen" and not _is_frozen(module))
        names |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False) if changes}
    return names


def _is_frozen(module: nn.Module) -> bool:
    """Whether the module has parameters, none of which trains."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one kind: their number, and their bytes in memory (float32)."""

    part: str
    kind: str
    tensor: str
    trainable: bool
    count: int
    size_bytes: int


def parameter_table(network: Any) -> list[ParameterGroup]:
    """Group all parameters of a network by part, kind and tensor, trainable and frozen apart."""
    groups: dict[tuple[str, str, str, bool], list[nn.Parameter]] = {}
    for _, parameter, role in roles(network):
        groups.setdefault((role.part, role.kind, role.tensor, parameter.requires_grad), []).append(parameter)
    return [
        ParameterGroup(*key, sum(p.numel() for p in ps), sum(p.numel() * p.element_size() for p in ps))
        for key, ps in sorted(groups.items())
    ]

"""Construct a network from its description, with random weights or with shapes only."""

from typing import Any

import timm
import torch
from torch import nn

from tinytl.errors import UserError
from tinytl.networks import specialized
from tinytl.networks.architecture import architecture
from tinytl.networks.lite_residual import LiteResidual, has_lite_residuals, insert_lite_residuals
from tinytl.networks.norms import check_norm, norm_layer, replace_batch_norm, standardize_weights
from tinytl.networks.read_net_config import parse
from tinytl.networks.spec import NetworkSpec


def construct(spec: NetworkSpec) -> Any:
    """Construct the network, initialised by timm. The checkpoint and seed of `spec` are not used.

    Raises UserError where the model is unknown, or the norm or the lite residual does not fit it.
    """
    eps = architecture(spec.model, spec.net_config).batch_norm_eps
    check_norm(spec.norm, spec.model, has_batch_norm=eps is not None)
    network = _create(spec, eps)
    lite = None if has_lite_residuals(network) else spec.lite_residual
    if lite and not insert_lite_residuals(network, lite, spec.norm, eps or 1e-5):
        raise UserError(
            f"model={spec.model} has no inverted bottlenecks or residual blocks that lite residual "
            f"modules can be added to; choose method=full, norm_last, last or bias, and leave "
            f"lite_residual.enabled=false"
        )
    if spec.norm == "gn":
        standardize_weights(network)
    return network


def build_on_meta(spec: NetworkSpec) -> Any:
    """Construct the network with shapes only (meta tensors): nothing is allocated or loaded."""
    with torch.device("meta"):
        network = construct(spec)
    for module in network.modules():
        if isinstance(module, LiteResidual):
            module.upsampling = "nearest"  # the same shapes, in a tenth of the time on the meta device
    return network


def new_head(network: Any) -> None:
    """Initialise the classifier anew, uniformly in +-1/sqrt(fan-in)."""
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return  # for example a convolution, which keeps timm's initialisation
    bound = classifier.in_features**-0.5
    nn.init.uniform_(classifier.weight, -bound, bound)
    nn.init.uniform_(classifier.bias, -bound, bound)


def _create(spec: NetworkSpec, eps: float | None) -> Any:
    """Create the network with its norm layers, without lite residuals and weight standardisation."""
    if spec.net_config is not None:
        return specialized.build(parse(spec.net_config), spec.norm, spec.num_classes, spec.dropout)
    kwargs = {"num_classes": spec.num_classes, "drop_rate": spec.dropout}
    if spec.norm != "gn" or eps is None:
        return timm.create_model(spec.model, **kwargs)
    try:
        network = timm.create_model(spec.model, norm_layer=norm_layer("gn", eps), **kwargs)
    except (TypeError, AssertionError):  # takes no norm, or groups of 8 do not divide its channels
        network = timm.create_model(spec.model, **kwargs)
    replace_batch_norm(network)  # the layers to which timm did not pass `norm_layer`
    return network

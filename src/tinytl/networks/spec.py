"""The description that a network is constructed from."""

from dataclasses import dataclass

from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName

EMBEDDED = "embedded"  # names the weights that come with the package, as `checkpoint`


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides a network; equal descriptions give equal networks."""

    model: str  # a timm name; ProxylessNAS among them
    norm: NormName
    num_classes: int
    lite_residual: LiteResidualConfig | None = None  # None: no lite residual modules
    dropout: float = 0.2  # before the classifier
    checkpoint: str | None = None  # path, URL, name of timm weights, "embedded"; None: random weights
    seed: int = 0  # of the weights that are drawn at random

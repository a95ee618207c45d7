"""The description that a network is built from."""

from dataclasses import dataclass

from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName

EMBEDDED = "embedded"  # a checkpoint's name for the starting points that come with the package


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that a network is made from; the same description gives the same network."""

    model: str  # a timm name; ProxylessNAS among them
    norm: NormName
    num_classes: int
    lite_residual: LiteResidualConfig | None = None  # None: no lite residual modules
    dropout: float = 0.2  # before the classifier
    checkpoint: str | None = None  # path, URL, name of timm weights, "embedded"; None: random weights
    seed: int = 0  # of the random weights

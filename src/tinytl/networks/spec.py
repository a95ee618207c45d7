"""The description that a network is constructed from."""

from dataclasses import dataclass

from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName

# Names of starting weights, as `checkpoint`.
EMBEDDED = "embedded"  # those that come with the package
TINYTL = "tinytl"  # the published ProxylessNAS-Mobile of TinyTL
IMAGENET = "imagenet"  # those of a package of the package index
NAMED = (EMBEDDED, TINYTL, IMAGENET)


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides a network; equal descriptions give equal networks."""

    model: str  # a timm name; ProxylessNAS among them
    norm: NormName
    num_classes: int
    lite_residual: LiteResidualConfig | None = None  # None: no lite residual modules
    dropout: float = 0.2  # before the classifier
    checkpoint: str | None = None  # path, URL, name (NAMED, or of timm weights); None: random weights
    seed: int = 0  # of the weights that are drawn at random

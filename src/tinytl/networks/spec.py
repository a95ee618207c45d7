"""The description that a network is constructed from."""

from dataclasses import dataclass

from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName

# Names of starting weights, as `checkpoint`.
EMBEDDED = "embedded"  # those that come with the package
TINYTL = "tinytl"  # the published ProxylessNAS-Mobile of TinyTL
IMAGENET = "imagenet"  # those of a package of the package index
SPECIALIZED = "specialized"  # the published network for the data; also specialized/DATASET


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides a network; equal descriptions give equal networks."""

    model: str  # a timm name, ProxylessNAS among them; or tinytl_specialized, with `net_config`
    norm: NormName
    num_classes: int
    lite_residual: LiteResidualConfig | None = None  # None: no lite residual modules
    dropout: float = 0.2  # before the classifier
    checkpoint: str | None = None  # path, URL, name (see above, or of timm weights); None: random weights
    seed: int = 0  # of the weights that are drawn at random
    net_config: str | None = None  # the text of the net.config that a specialised network is built from


def is_specialized(source: str | None) -> bool:
    """Whether weights are named `specialized` or `specialized/DATASET`."""
    return source is not None and source.split("/")[0] == SPECIALIZED and source.count("/") <= 1


def is_named(source: str | None) -> bool:
    """Whether weights are named here, rather than by a path, a URL or timm's name."""
    return source in (EMBEDDED, TINYTL, IMAGENET) or is_specialized(source)

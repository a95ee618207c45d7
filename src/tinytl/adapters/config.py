"""The settings of `adapt`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError
from tinytl.methods import METHODS
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName
from tinytl.networks.quantize import QUANTIZERS, QuantizeName

Norm = Literal["frozen", "batch", "group", "native"]
# The programs' names of the same norms; Config takes them, too.
NORMS: dict[Norm, NormName] = {"frozen": "bn_frozen", "batch": "bn", "group": "gn", "native": "native"}


@dataclass(frozen=True)
class Config:
    """How a network is adapted. Raises UserError for values that cannot be right.

    `method`: which parameters train; a name in `tinytl.methods.METHODS`.
    `norm`: what norm layers do in training: `frozen` is BatchNorm with the statistics that it has stored,
    `batch` is BatchNorm with those of the batch, `group` is GroupNorm, and `native` changes nothing.
    `trained_blocks`: only this many of the last blocks train; None: all.
    `quantize`: how frozen weights are rounded to 8 bits: int8, kmeans or off.
    `lite_residual`: shape of the lite residual modules; None: the paper's, where the method trains them.
    `classifier`: the layer that gives the classes, or its name; None: timm tells it.
    `blocks`: names of the blocks, in which lite residual modules are put, which are computed again in the
    backward pass, and which `trained_blocks` counts; None: timm tells them.
    `plan`: what the lean engine keeps and computes again.
    `lean`: whether the lean engine computes the network; False: stock PyTorch does.
    """

    method: str = "tinytl"
    norm: Norm = "frozen"
    trained_blocks: int | None = None
    quantize: QuantizeName = "int8"
    lite_residual: LiteResidualConfig | None = None
    classifier: str | nn.Module | None = None
    blocks: Sequence[str] | None = None
    plan: EnginePlan = field(default_factory=EnginePlan)
    lean: bool = True

    def __post_init__(self) -> None:
        word = next((word for word, name in NORMS.items() if self.norm in (word, name)), None)
        if word is None:
            raise UserError(f"norm={self.norm}: unknown; one of {', '.join(NORMS)}")
        object.__setattr__(self, "norm", word)
        if self.method not in METHODS:
            raise UserError(f"method={self.method}: unknown; one of {', '.join(METHODS)}")
        if self.quantize not in (*QUANTIZERS, "off"):
            raise UserError(f"quantize={self.quantize}: unknown; one of {', '.join(QUANTIZERS)}, off")
        count = self.trained_blocks
        if count is not None and (not isinstance(count, int) or count < 0):
            raise UserError(f"trained_blocks={count}: a number of blocks is needed, or None")
        if isinstance(self.blocks, str):
            raise UserError(f"blocks={self.blocks!r}: a list of names is needed")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))
        for name, kind in (
            ("plan", EnginePlan),
            ("lite_residual", LiteResidualConfig | None),
            ("lean", bool),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name}={getattr(self, name)!r:.60} cannot be right")

    @property
    def new_lite_residual(self) -> LiteResidualConfig:
        """The shape of new lite residual modules, which only blocks that train have."""
        return replace(self.lite_residual or LiteResidualConfig(), blocks=self.trained_blocks)

    @property
    def norm_name(self) -> NormName:
        """The norm by the name that records and programs use."""
        return NORMS[self.norm]

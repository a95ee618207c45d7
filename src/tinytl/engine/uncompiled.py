"""torch.compile leaves a lean network as it is: code that it generates would keep more for the backward pass."""

from typing import Any

import torch

from tinytl.engine.mixin import Mixin


class Uncompiled(Mixin):
    """A network whose forward pass torch.compile leaves alone; torch.export looks into it."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the network, outside of what torch.compile compiles."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            from tinytl.engine.eager import eagerly  # imports torch's compiler, which takes seconds

            return eagerly(super().forward, *inputs, **options)  # type: ignore[misc]
        return super().forward(*inputs, **options)  # type: ignore[misc]

"""A network that `make_lean` has converted, as torch.compile, torch.export and torch.fx meet it."""

from typing import Any

import torch

from tinytl.engine.mixin import Mixin


class Lean(Mixin):
    """A lean network. torch.compile leaves it as it is, because generated code would keep more for the
    backward pass; torch.export and torch.jit.trace look into it.
    """

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the network, outside of what torch.compile compiles."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            from tinytl.engine.eager import eagerly  # imports torch's compiler, which takes seconds

            return eagerly(super().forward, *inputs, **options)  # type: ignore[misc]
        return super().forward(*inputs, **options)  # type: ignore[misc]

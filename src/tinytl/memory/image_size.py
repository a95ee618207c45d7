"""Whether a network takes images of a size: tried on shapes alone, without weights or arithmetic."""

from dataclasses import replace
from functools import cache

import torch

from tinytl.backbones.build import NetworkSpec, build_on_meta
from tinytl.errors import UserError

STEP = 32  # px: sizes that are tried instead


def check_image_size(spec: NetworkSpec, resolution: int) -> None:
    """Raise UserError naming the smallest size that the network takes, where it does not take this one."""
    plain = replace(spec, checkpoint=None, seed=0, num_classes=2)
    reason = _refusal(plain, resolution)
    if reason is None:
        return
    larger = range(resolution // STEP * STEP + STEP, 513, STEP)
    enough = next((size for size in larger if _refusal(plain, size) is None), None)
    hint = f"at least {enough} works" if enough else reason
    raise UserError(f"resolution={resolution}: too small for model={spec.model}; {hint}")


@cache
def _refusal(spec: NetworkSpec, resolution: int) -> str | None:
    """What the network's layers say to images of this size; None: they take them."""
    network = build_on_meta(spec).eval()
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, resolution, resolution, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None

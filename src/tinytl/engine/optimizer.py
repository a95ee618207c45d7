"""Adam in little memory."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError


def adam(parameters: ParamsT, lr: float, weight_decay: float, plan: EnginePlan) -> Any:
    """Make Adam as the plan says: fused (no temporaries) or in 8 bits, perhaps stepping in the backward pass.

    8 bits are bitsandbytes' blockwise dynamic quantisation (Dettmers et al., ICLR 2022, arXiv 2110.02861);
    the moments of tensors below 4,096 elements stay in 32 bits. Raises UserError where bitsandbytes is not
    installed.
    """
    if plan.optimizer_bits == 8:
        if find_spec("bitsandbytes") is None:
            raise UserError("engine.optimizer_bits=8 needs bitsandbytes: pip install -e '.[8bit]'")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels not needed here
        import bitsandbytes  # slow to import, and optional

        adam8bit: Any = bitsandbytes.optim.Adam8bit
        optimizer = adam8bit(parameters, lr=lr, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    if plan.step_in_backward:
        step_in_backward(optimizer)
    return optimizer


def step_in_backward(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step on each gradient as soon as it is complete, and free it then.

    No gradient is left to be clipped, scaled or accumulated: `clip_grad_norm_` finds none. A second
    backward pass before `optimizer.step()` raises UserError.
    """
    stepper = _Stepper(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(stepper)


class _Stepper:
    """Steps on one parameter at a time, and checks that each is stepped on once a step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.stepped: set[nn.Parameter] = set()
        self.is_stepping = False
        optimizer.register_step_post_hook(self._forget)

    def __call__(self, parameter: nn.Parameter) -> None:
        if parameter in self.stepped:
            raise UserError(
                "engine.step_in_backward: a second backward pass before optimizer.step(); "
                "gradients are stepped on at once, so that they cannot be accumulated"
            )
        self.stepped.add(parameter)
        self.is_stepping = True
        try:
            self.optimizer.step()  # no other parameter has a gradient now, so only this one moves
        finally:
            self.is_stepping = False
        parameter.grad = None

    def _forget(self, *_: Any) -> None:
        if not self.is_stepping:
            self.stepped.clear()

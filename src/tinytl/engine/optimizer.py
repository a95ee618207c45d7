"""Adam in little memory."""

import logging
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
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

    No gradient is left to be clipped, scaled or accumulated: whoever reads one between the backward pass and
    `optimizer.step()` gets a UserError, and so does a second backward pass. Raises UserError in distributed
    training, whose gradients are averaged only when all of them are complete.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise UserError("engine.step_in_backward: gradients would not be averaged over the processes")
    stepper = _Stepper(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_hook(partial(stepper.refuse_second, parameter))
            parameter.register_post_accumulate_grad_hook(stepper.step)


class _Spent(Tensor):
    """Takes the place of a gradient that has been stepped on; it holds one number. Any use is refused."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UserError(
            "engine.step_in_backward: gradients are stepped on and freed in the backward pass; none is left "
            "to be clipped, scaled or read"
        )


class _Stepper:
    """Steps on one parameter at a time, and checks that each is stepped on only once in a training step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.stepped: set[nn.Parameter] = set()
        self.is_stepping = False
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)

    def refuse_second(self, parameter: nn.Parameter, _: Tensor) -> None:
        """Raise UserError where a further gradient arrives in a step."""
        if parameter in self.stepped:
            raise UserError(
                "engine.step_in_backward: a second backward pass before optimizer.step(); "
                "gradients are stepped on at once, so that they cannot be accumulated"
            )

    def step(self, parameter: nn.Parameter) -> None:
        """Step on a parameter whose gradient is complete, and free the gradient."""
        if not self.stepped:
            torch.autograd.Variable._execution_engine.queue_callback(self._mark)
        self.stepped.add(parameter)
        self.is_stepping = True
        try:
            self.optimizer.step()  # no other parameter has a gradient now, so only this one moves
        finally:
            self.is_stepping = False
        parameter.grad = None

    def _mark(self) -> None:
        """Mark the gradients at the end of the backward pass."""
        for parameter in self.stepped:
            parameter.grad = parameter.new_zeros(()).expand(parameter.shape).as_subclass(_Spent)

    def _unmark(self) -> None:
        """Remove the marks, so that no parameter has a gradient."""
        for parameter in self.stepped:
            parameter.grad = None

    def _begin(self, _: Any, args: Any, kwargs: Any) -> Any:
        """Remove the marks; where a closure runs the backward pass, after it."""
        if self.is_stepping:
            return None
        self._unmark()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            return None

        def unmarked() -> Any:
            """Run the backward pass, and remove the marks that it has set."""
            loss = closure()
            self._unmark()
            return loss

        return (args[0], unmarked, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    def _end(self, *_: Any) -> None:
        if not self.is_stepping:
            self.stepped.clear()

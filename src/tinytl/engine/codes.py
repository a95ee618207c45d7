"""The codes of a frozen weight as a parameter of the network, so that they count among its parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from tinytl.errors import UserError

# Operators by which torch averages parameters on GPUs (torch.optim.swa_utils); they refuse integers.
AVERAGING = (torch._foreach_addcdiv_, torch._foreach_add_)


class Codes(nn.Parameter):
    """A frozen weight as a layer stores it: integers of 8 bits, or values that are not quantised.

    `numel` is the number of weights, without the padding of packed codes. It never takes a gradient. What is
    written into integers, for example by an average of parameters, is rounded.
    """

    count: int

    def __new__(cls, stored: Tensor, count: int) -> "Codes":
        """Make the parameter of stored codes that hold `count` weights."""
        codes = torch.Tensor._make_subclass(cls, stored.detach(), False)
        codes.count = count
        return codes

    def __init__(self, stored: Tensor, count: int) -> None:
        super().__init__()

    def numel(self) -> int:
        """The number of weights."""
        return self.count

    nelement = numel

    def detach(self) -> "Codes":
        """The same codes."""
        return Codes(self.data, self.count)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> "Codes":
        """Take over other codes; those in floating point are rounded."""
        rounds = source.is_floating_point() and not self.is_floating_point()
        self.data.copy_(source.round() if rounds else source, non_blocking)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Codes":
        """Refuse to be trained: UserError."""
        self.requires_grad = requires_grad
        return self

    @property
    def requires_grad(self) -> bool:
        """Always False."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        """Raise UserError for True: codes cannot be trained."""
        if value:
            raise UserError(
                "engine=lean: the weight is frozen, perhaps in 8 bits, and cannot be trained; "
                "make_plain(network) first"
            )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as for any tensor, except that averages are written into integers."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in AVERAGING and not args[0][0].is_floating_point():
                return _average(func, *args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Codes":
        if id(self) not in memo:
            memo[id(self)] = Codes(self.data.clone(), self.count)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Codes, (self.data, self.count)


def _average(
    func: Any, averages: list[Tensor], differences: list[Tensor], *args: Any, **options: Any
) -> None:
    """Add multiples of differences to averages of codes; equal codes stay as they are."""
    values = [average.float() for average in averages]
    func(values, [difference.float() for difference in differences], *args, **options)
    for average, value in zip(averages, values, strict=True):
        average.copy_(value.round())

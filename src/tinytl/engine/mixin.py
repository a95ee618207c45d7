"""Give a module of any class another behaviour, in a class derived from its own."""

from functools import cache, wraps
from inspect import get_annotations
from typing import Any

from torch import nn


class Mixin:
    """Base of the behaviours.

    A derived class is made when it is needed, so that copies and pickled files cannot name it: they name the
    behaviour and the base, of which `_empty` makes it again.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin, base = type(self).__bases__
        return _empty, (mixin, base), self.__dict__


def become(module: nn.Module, mixin: type[Mixin]) -> None:
    """Change a module's class into one derived from `mixin` and from its own.

    Its parameters, names and `isinstance` stay as they are, and `print` shows the new class.
    """
    module.__class__ = _derived(mixin, type(module))


def restore_class(module: nn.Module) -> None:
    """Undo `become`, as often as it was done, and remove the attributes that the behaviours declare."""
    while isinstance(module, Mixin):
        mixin, base = type(module).__bases__
        for name in get_annotations(mixin):
            vars(module).pop(name, None)
        module.__class__ = base


@cache
def _derived(mixin: type[Mixin], base: type[nn.Module]) -> Any:
    """The class derived from both, one for each pair."""
    content: dict[str, Any] = {"__module__": base.__module__}
    if "forward" in vars(mixin):
        content["forward"] = _forward(mixin, base)
    return type(f"{mixin.__name__}{base.__name__}", (mixin, base), content)


def _forward(mixin: Any, base: type[nn.Module]) -> Any:
    """The mixin's forward pass with the signature of the base's, which torch.export and torch.fx read."""

    @wraps(base.forward)
    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Compute by the mixin."""
        return mixin.forward(self, *inputs, **options)

    return forward


def _empty(mixin: type[Mixin], base: type[nn.Module]) -> nn.Module:
    """An object of the derived class, before copy or pickle have set its attributes."""
    derived = _derived(mixin, base)
    return derived.__new__(derived)

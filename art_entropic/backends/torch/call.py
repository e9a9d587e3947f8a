"""PyTorch: one torch function called with bound tensors, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch

from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.torch.tensor import Bounds, BoundTensor, Path, bounds_in, name_of, replaced
from art_entropic.ops import Box

# In which boxes can be computed.
PRECISIONS = (torch.float32, torch.float64)
# Other names that PyTorch has for the same arguments, NumPy's among them.
_OTHER_NAMES = {
    "input": ("x", "x1", "a", "tensor"),
    "other": ("x2", "mat2", "vec"),
    "mat1": ("batch1",),
    "mat2": ("batch2",),
    "dim": ("axis",),
    "training": ("train",),
}


class Call:
    """One torch function called with at least one `BoundTensor` among its arguments."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Path, in_place: bool) -> None:
        self.func, self.args, self.trace, self.in_place = func, args, trace, in_place
        # Rules never change a tensor; an in-place function does that behind them, for all who share it.
        self.kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        if len(self.args) > position:
            return self.args[position]
        keyword = self._keyword(name)
        return default if keyword is None else self.kwargs[keyword]

    def _keyword(self, name: str) -> str | None:
        if name in self.kwargs:
            return name
        return next((other for other in _OTHER_NAMES.get(name, ()) if other in self.kwargs), None)

    def number(self, position: int, name: str, default: float) -> float:
        """An argument that is one number, the same for every input of the network; None stands for the default."""
        given = self.argument(position, name)
        if isinstance(given, BoundTensor) or (isinstance(given, torch.Tensor) and given.numel() != 1):
            self.refuse(f"{name} is not a constant number")
        return default if given is None else float(given)

    def operands(self, *names: str) -> list[Any]:
        """The first arguments, given by place or by name; from here on they are `args`."""
        found = list(self.args[: len(names)])
        for name in names[len(found) :]:
            keyword = self._keyword(name)
            if keyword is None:
                self.refuse(f"it is called without {name!r}")
            found.append(self.kwargs[keyword])
            self.kwargs = {key: value for key, value in self.kwargs.items() if key != keyword}
        self.args = (*found, *self.args[len(names) :])
        return found

    def unbound(self) -> None:
        """Refuse a `BoundTensor` in any place but the first, such as weights that depend on the input."""
        if next(bounds_in((self.args[1:], self.kwargs)), None) is not None:
            self.refuse("only its first argument may depend on the input, but another one does")

    def sole(self) -> BoundTensor:
        """The first argument, which must be the only bound one."""
        bound = self.input()
        self.unbound()
        return bound

    def refuse(self, hint: str) -> NoReturn:
        raise NoIntervalRuleError(*self.trace.running(name_of(self.func)), hint=hint)

    def apply(self, part: Callable[[BoundTensor], torch.Tensor]) -> Any:
        """The function itself on one part of every bound."""
        return self.func(*replaced(self.args, part), **replaced(self.kwargs, part))

    def on(self, x: torch.Tensor, **changed: Any) -> torch.Tensor:
        """The function itself on another first argument."""
        result: torch.Tensor = self.func(x, *self.args[1:], **{**self.kwargs, **changed})
        return result

    def bind(self, value: torch.Tensor, box: Box | Bounds) -> BoundTensor:
        if value.dtype not in PRECISIONS:
            self.refuse(f"bounds need float32 or float64 arithmetic, it gives {value.dtype}")
        return BoundTensor(value, box, self.trace.source(name_of(self.func)), self.trace)

    def input(self) -> BoundTensor:
        """The first argument, which must be the bound one."""
        (first,) = self.operands("input")
        if not isinstance(first, BoundTensor):
            self.refuse("its first argument does not depend on the input, but another one does")
        bound: BoundTensor = first
        return bound


Rule = Callable[[Call], Any]
Part = Callable[[BoundTensor], torch.Tensor]


def value_of(bound: BoundTensor) -> torch.Tensor:
    return bound.value


def lower_of(bound: BoundTensor) -> torch.Tensor:
    lower: torch.Tensor = bound.box.lower
    return lower


def upper_of(bound: BoundTensor) -> torch.Tensor:
    upper: torch.Tensor = bound.box.upper
    return upper


NUMBERS = (int, float, np.integer, np.floating)


def is_bound(x: Any) -> TypeGuard[BoundTensor]:
    return isinstance(x, BoundTensor)

"""Interval propagation through a user's own PyTorch forward code.

A `BoundTensor` carries the value at the data and a box around it, and answers every torch function with the rule of that
function. So whatever Python the forward method runs (functional calls, residuals, loops over modules) works without tracing;
a function without a rule is an error."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from art_entropic import intervals
from art_entropic.backends.curvature import bends
from art_entropic.backends.errors import FINAL_SOFTMAX, NoIntervalRuleError
from art_entropic.backends.torch.ops import ops
from art_entropic.ops import Box

_PRECISIONS = (torch.float32, torch.float64)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of the device or of the machine, was too small."""
    # On the CPU it is a RuntimeError like any other, known by its words alone.
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def uncompiled(name: str) -> str:
    """The name of a module or a weight without what `torch.compile` adds to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class Bounds:
    """The box around a tensor, as it is recorded: one object for each state of a tensor that a network changes in place."""

    def __init__(self, box: Box, radius: torch.Tensor | None = None) -> None:
        self.box, self.radius = box, radius


class Trace:
    """The module that is running, the pre-activations met so far, and the bound tensors that live."""

    def __init__(self, model: nn.Module) -> None:
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self.layers: list[tuple[str, Any]] = []
        self.curved: str | None = None  # the first operation that bends
        self.differentiates = torch.is_grad_enabled()
        self._last = self._stack[0]
        self._living: list[weakref.ref[BoundTensor]] = []
        self._severed: list[list[weakref.ref[BoundTensor]]] = []

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[Trace]:
        """Know the running module by forward hooks, which are removed on leaving."""
        handles = []

        def enter(module: nn.Module, _: Any) -> None:
            self._last = (names[module], module)
            self._stack.append(self._last)

        def leave(*_: Any) -> None:
            self._stack.pop()

        names = {module: uncompiled(name) for name, module in model.named_modules() if uncompiled(name)}
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for module in model.modules():
                # A module that keeps what it saw keeps the plain value, as it would have.
                vars(module).update({name: kept.value for name, kept in vars(module).items() if type(kept) is BoundTensor})

    @contextlib.contextmanager
    def refusing(self, model: nn.Module) -> Iterator[Trace]:
        """`following`, where whatever fails but memory says that this network cannot be looked into.

        Raises:
            NoIntervalRuleError: with the error that the network's own code raises on what is not quite a tensor.
        """
        try:
            with self.following(model):
                yield self
        except NoIntervalRuleError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            name, module = self._last
            kind = type(module).__name__
            raise NoIntervalRuleError(
                name or kind, kind, f"looking into it fails with {type(error).__name__}: {error}"
            ) from error

    def source(self, function: str) -> str:
        """Name of what is being computed: the leaf module's path, else the enclosing module's path and the function."""
        name, module = self._stack[-1]
        if name and next(module.children(), None) is None:
            return name
        return f"{name}.{function}" if name else function

    def running(self, function: str) -> tuple[str, str]:
        """(path, class or function) for an error message."""
        name, module = self._stack[-1]
        leaf = next(module.children(), None) is None
        return name or type(module).__name__, type(module).__name__ if leaf and name else f"torch function {function!r}"

    @property
    def training(self) -> bool:
        """Mode of the running module."""
        return self._stack[-1][1].training

    def live(self, bound: BoundTensor) -> None:
        """Know a bound tensor for as long as the network holds it."""
        self._living.append(weakref.ref(bound))

    def aliases(self, bound: BoundTensor) -> list[BoundTensor]:
        """The other living bound tensors that share its memory, as views and no-op conversions do."""
        self._living = [reference for reference in self._living if reference() is not None]
        others = (reference() for reference in self._living)
        return [other for other in others if other is not None and other is not bound and _share_memory(other, bound)]

    def sever(self, bounds: Iterable[BoundTensor]) -> None:
        """Note that these share memory in the network and share it no more here."""
        self._severed.append([weakref.ref(bound) for bound in bounds])

    def is_severed(self, bound: BoundTensor) -> bool:
        """Whether a tensor that lives shares memory with this one in the network, but not here."""
        for group in self._severed:
            living = [member for member in (reference() for reference in group) if member is not None]
            together = [_share_memory(member, bound) for member in living]
            if any(together) and not all(together):
                return True
        return False

    def run(self, function: str, operands: int) -> None:
        """Note that a function runs, and how many of its arguments depend on the input."""
        if self.curved is None and bends(function, operands):
            self.curved = function

    def record(self, source: str, value: Any) -> None:
        if all(value is not seen for _, seen in self.layers):
            self.layers.append((source, value))

    def finish(self, source: str, logits: Any) -> None:
        """The logits come last, even where they entered a nonlinearity on the way."""
        self.layers = [(name, seen) for name, seen in self.layers if seen is not logits] + [(source, logits)]

    def named(self) -> list[tuple[str, Any]]:
        """The pre-activations with unique names."""
        count: dict[str, int] = {}
        result = []
        for name, value in self.layers:
            count[name] = count.get(name, 0) + 1
            result.append((name if count[name] == 1 else f"{name}#{count[name]}", value))
        return result


class BoundTensor(torch.Tensor):
    """A value and the box around it, standing in for a tensor inside a forward method. It has no storage of its own."""

    value: torch.Tensor
    bounds: Bounds
    source: str
    path: Trace

    @staticmethod
    def __new__(cls, value: torch.Tensor, box: Box | Bounds, source: str, path: Trace) -> BoundTensor:
        bound: BoundTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=value.device,
        )
        bound.value, bound.source, bound.path = value, source, path
        bound.bounds = box if isinstance(box, Bounds) else Bounds(box)
        path.live(bound)
        return bound

    @property
    def box(self) -> Box:
        return self.bounds.box

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        trace = next(_bounds((args, kwargs))).path
        functional = _IN_PLACE.get(func, func)
        rule = _RULES.get(functional)
        if rule is None:
            raise NoIntervalRuleError(*trace.running(_name(func)), hint=_HINTS.get(_name(func), ""))
        with torch._C.DisableTorchFunctionSubclass():
            in_place = functional is not func or bool(kwargs.get("inplace", False))
            call = _Call(functional, args, kwargs, trace, in_place)
            if kwargs.get("out") is not None:
                call.refuse("it writes into the tensor that `out` names")
            if trace.differentiates and not torch.is_grad_enabled():
                call.refuse("it is computed without gradients (in a custom autograd.Function, or under torch.no_grad)")
            trace.run(_name(functional), _factors(_name(functional), args, kwargs))
            return _changed(call, rule) if in_place else rule(call)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Reached only by code that goes round torch functions (compiled or scripted); there is no storage to compute with.
        bound = next(_bounds((args, kwargs)))
        raise NoIntervalRuleError(*bound.path.running(_name(func)), hint="it is called below the level of torch functions")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"BoundTensor(shape={tuple(self.value.shape)}, source={self.source!r})"


def _name(func: Any) -> str:
    # A property comes as the method of a descriptor, which knows the property's name.
    of = getattr(func, "__self__", None) if getattr(func, "__name__", "") in ("__get__", "__set__") else None
    return getattr(func if of is None else of, "__name__", str(func)).strip("_")


def _bounds(tree: Any) -> Iterator[BoundTensor]:
    if isinstance(tree, BoundTensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _bounds(item)
    elif isinstance(tree, dict):
        yield from _bounds(tuple(tree.values()))


def _factors(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many factors of a product depend on the input; of a quotient with such a divisor, two."""
    if name in ("addmm", "baddbmm", "addcmul"):
        args, kwargs = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
    divides = name in ("div", "divide", "true_divide", "truediv")
    if divides and next(_bounds((args[1:], kwargs.get("other"))), None) is not None:
        return 2
    return sum(1 for _ in _bounds((args, kwargs)))


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _replace(tree: Any, part: Callable[[BoundTensor], torch.Tensor]) -> Any:
    if isinstance(tree, BoundTensor):
        return part(tree)
    if isinstance(tree, (list, tuple)):
        items = [_replace(item, part) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: _replace(value, part) for key, value in tree.items()}
    return tree


# Other names that PyTorch has for the same arguments, NumPy's among them.
_OTHER_NAMES = {
    "input": ("x", "x1", "a", "tensor"),
    "other": ("x2", "mat2", "vec"),
    "mat1": ("batch1",),
    "mat2": ("batch2",),
    "dim": ("axis",),
    "training": ("train",),
}


class _Call:
    """One torch function called with at least one `BoundTensor` among its arguments."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Trace, in_place: bool) -> None:
        self.func, self.args, self.trace, self.in_place = func, args, trace, in_place
        # Rules never change a tensor; `_changed` does, for all who share it.
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
            self.refuse(f"{name} is not one number, the same for every input")
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
        if next(_bounds((self.args[1:], self.kwargs)), None) is not None:
            self.refuse("only its first argument may depend on the input, another one does")

    def sole(self) -> BoundTensor:
        """The first argument, which must be the only bound one."""
        bound = self.input()
        self.unbound()
        return bound

    def refuse(self, hint: str) -> NoReturn:
        raise NoIntervalRuleError(*self.trace.running(_name(self.func)), hint=hint)

    def apply(self, part: Callable[[BoundTensor], torch.Tensor]) -> Any:
        """The function itself on one part of every bound."""
        return self.func(*_replace(self.args, part), **_replace(self.kwargs, part))

    def on(self, x: torch.Tensor, **changed: Any) -> torch.Tensor:
        """The function itself on another first argument."""
        result: torch.Tensor = self.func(x, *self.args[1:], **{**self.kwargs, **changed})
        return result

    def bind(self, value: torch.Tensor, box: Box | Bounds) -> BoundTensor:
        if value.dtype not in _PRECISIONS:
            self.refuse(f"bounds need float32 or float64 arithmetic, it gives {value.dtype}")
        return BoundTensor(value, box, self.trace.source(_name(self.func)), self.trace)

    def input(self) -> BoundTensor:
        """The first argument, which must be the bound one."""
        (first,) = self.operands("input")
        if not isinstance(first, BoundTensor):
            self.refuse("its first argument does not depend on the input, but another one does")
        bound: BoundTensor = first
        return bound


Rule = Callable[[_Call], Any]
Part = Callable[[BoundTensor], torch.Tensor]


def _value(bound: BoundTensor) -> torch.Tensor:
    return bound.value


def _lower(bound: BoundTensor) -> torch.Tensor:
    lower: torch.Tensor = bound.box.lower
    return lower


def _upper(bound: BoundTensor) -> torch.Tensor:
    upper: torch.Tensor = bound.box.upper
    return upper


_NUMBERS = (int, float, np.integer, np.floating)


def _is_bound(x: Any) -> TypeGuard[BoundTensor]:
    return isinstance(x, BoundTensor)


def _monotone(call: _Call) -> Any:
    """Never decreasing in its first argument, which is the only bound one."""
    call.sole()
    return _monotone_in_all(call)


def _monotone_in_all(call: _Call) -> Any:
    """Never decreasing in any bound argument: the function on each part."""
    value, lower, upper = (call.apply(part) for part in (_value, _lower, _upper))
    if isinstance(value, torch.Tensor):
        return call.bind(value, Box(lower, upper))
    return type(value)(call.bind(v, Box(lo, up)) for v, lo, up in zip(value, lower, upper, strict=True))


def _falling(call: _Call) -> BoundTensor:
    """Never increasing in its first argument, which is the only bound one."""
    bound = call.sole()
    return call.bind(call.on(bound.value), Box(call.on(bound.box.upper), call.on(bound.box.lower)))


def _joined(call: _Call) -> Any:
    """Several tensors that become one."""
    call.operands("tensors")
    call.unbound()
    return _monotone_in_all(call)


def _alike(call: _Call) -> Any:
    """The first argument with the shape, precision or device of another one, of which no number is used."""
    (first,) = call.operands("input")
    return _monotone_in_all(call) if _is_bound(first) else call.apply(_value)


def _view(call: _Call) -> Any:
    if any(isinstance(given, torch.dtype) for given in (*call.args, *call.kwargs.values())):
        call.refuse("it reads the bits of the numbers as another type's")
    return _monotone(call)


def _where(call: _Call) -> Any:
    if _is_bound(call.argument(1 if call.func is _T.where else 0, "condition")):
        call.refuse("its condition depends on the input")
    return _monotone_in_all(call)


class _Unbounded(torch.Tensor):
    """The places at which a function found its values. They have no bounds: a network may drop them, any use is refused."""

    running: tuple[str, str]

    @staticmethod
    def __new__(cls, like: torch.Tensor, running: tuple[str, str]) -> _Unbounded:
        places: _Unbounded = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        places.running = running
        return places

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        places = next(tensor for tensor in _tensors((args, kwargs)) if isinstance(tensor, _Unbounded))
        raise NoIntervalRuleError(*places.running, hint=f"{_name(func)!r} uses the places of its values, not the values alone")


def _values(call: _Call) -> Any:
    """Never decreasing in its values; it may tell their places beside them."""
    call.sole()
    value, lower, upper = (call.apply(part) for part in (_value, _lower, _upper))
    if isinstance(value, torch.Tensor):
        return call.bind(value, Box(lower, upper))
    places = _Unbounded(value[1], call.trace.running(_name(call.func)))
    return type(value)((call.bind(value[0], Box(lower[0], upper[0])), places))


def _extreme(call: _Call) -> Any:
    """Of one tensor, along a dimension of it, or of two tensors."""
    call.operands("input")
    return _monotone_in_all(call) if isinstance(call.argument(1, "other"), torch.Tensor) else _values(call)


def _same(call: _Call) -> BoundTensor:
    bound = call.input()
    return call.bind(bound.value, bound.bounds)


def _activation(rule: Rule) -> Rule:
    """A nonlinearity: what enters it is a pre-activation."""

    def activate(call: _Call) -> Any:
        bound = call.input()
        call.trace.record(bound.source, bound.bounds)
        return rule(call)

    return activate


def _valley(argmin: float | Callable[[_Call], float]) -> Rule:
    def rule(call: _Call) -> BoundTensor:
        bound = call.sole()
        place = argmin(call) if callable(argmin) else argmin
        return call.bind(call.on(bound.value), intervals.valley(ops, call.on, place, bound.box))

    return rule


def _slope_not_negative(position: int, name: str, default: float) -> Rule:
    def rule(call: _Call) -> Any:
        if not call.number(position, name, default) >= 0:
            call.refuse(f"{name} is negative, so it is not monotone")
        return _monotone(call)

    return rule


def _prelu(call: _Call) -> Any:
    """Two lines that meet at 0, the right one rising: no value is above both ends, none below the lower end and the bend."""
    bound = call.sole()
    if bool(call.argument(1, "weight").ge(0).all()):
        return _monotone(call)
    lower, upper = bound.box
    left = call.on(lower)
    bend = call.on((lower * 0.0).clamp(lower, upper))
    return call.bind(call.on(bound.value), Box(torch.minimum(left, bend), torch.maximum(left, call.on(upper))))


def _rrelu(call: _Call) -> Any:
    if call.argument(3, "training", False):
        call.refuse("its slopes are random")
    if not call.number(1, "lower", 1 / 8) + call.number(2, "upper", 1 / 3) >= 0:
        call.refuse("its slope is negative, so it is not monotone")
    return _monotone(call)


def _softplus(call: _Call) -> Any:
    # Above `threshold` it is the straight line, log(1 + exp(-threshold)) below the curve: from 20 on, 1e-10 of the value.
    if not (call.number(1, "beta", 1) > 0 and call.number(2, "threshold", 20) >= 20):
        call.refuse("beta is not positive or threshold is below 20, where it jumps down")
    return _monotone(call)


def _glu(call: _Call) -> BoundTensor:
    bound = call.sole()
    dim = int(call.number(1, "dim", -1))
    (low, low_gate), (high, high_gate) = (end.chunk(2, dim) for end in bound.box)
    gate = Box(low_gate.sigmoid(), high_gate.sigmoid())
    return call.bind(call.on(bound.value), intervals.multiply(ops, Box(low, high), gate))


def _above(bottom: float, rule: Rule) -> Rule:
    """A function that is defined above `bottom` alone."""

    def defined(call: _Call) -> Any:
        if not bool((call.sole().box.lower > bottom).all()):
            call.refuse(f"its box is not above {bottom:g}, where the function ends")
        return rule(call)

    return defined


def _reciprocal(call: _Call) -> BoundTensor:
    _check_divisor(call, call.sole())
    return _falling(call)


def _power(call: _Call) -> Any:
    bound, exponent = call.operands("input", "exponent")
    if not _is_bound(bound) or not isinstance(exponent, _NUMBERS):
        call.refuse("of the powers only those of a tensor to one fixed number have one")
    if exponent > 0 and float(exponent).is_integer():
        return (_monotone if exponent % 2 else _valley(0.0))(call)
    return _above(0.0, _monotone if exponent > 0 else _falling)(call)


def _gelu_argmin(call: _Call) -> float:
    return intervals.GELU_TANH_ARGMIN if call.argument(1, "approximate") == "tanh" else intervals.GELU_ARGMIN


def _threshold(call: _Call) -> Any:
    call.operands("input", "threshold", "value")
    if not call.number(2, "value", 0) <= call.number(1, "threshold", 0):
        call.refuse("its value lies above its threshold, so it is not monotone")
    return _monotone(call)


class _SumAndWidth(torch.autograd.Function):
    """(lower, upper) -> (lower + upper, upper - lower), differentiated in fewer passes over memory than the operators."""

    @staticmethod
    def forward(ctx: Any, lower: torch.Tensor, upper: torch.Tensor) -> Any:
        return lower + upper, upper - lower

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, width: torch.Tensor) -> Any:
        return total - width, total + width


class _Ends(torch.autograd.Function):
    """(centre, radius) -> (lower, upper)."""

    @staticmethod
    def forward(ctx: Any, centre: torch.Tensor, radius: torch.Tensor) -> Any:
        return centre - radius, centre + radius

    @staticmethod
    def backward(ctx: Any, lower: torch.Tensor, upper: torch.Tensor) -> Any:
        return lower + upper, upper - lower


def _linear(call: _Call) -> BoundTensor:
    """Linear layers and convolutions: (input, weight, bias, ...)."""
    bound = call.sole()
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    rest = call.args[3:]
    options = {key: value for key, value in call.kwargs.items() if key not in ("weight", "bias")}
    # The halves of (lower + upper) / 2 and (upper - lower) / 2 go into the weight, which is smaller than the batch.
    half = weight * 0.5
    total, width = _SumAndWidth.apply(*bound.box)
    centre = call.func(total, half, bias, *rest, **options)
    radius = call.func(width, half.abs(), None, *rest, **options)
    return call.bind(call.on(bound.value), Bounds(Box(*_Ends.apply(centre, radius)), radius))


def _matmul(call: _Call) -> BoundTensor:
    left, right = call.operands("input", "other")
    if call.func is _T.__rmatmul__:
        left, right = right, left
    if _is_bound(left) and _is_bound(right):
        call.refuse("both factors depend on the input")
    if _is_bound(left):
        return call.bind(left.value @ right, intervals.affine(lambda x: x @ right, lambda x: x @ right.abs(), left.box))
    return call.bind(left @ right.value, intervals.affine(lambda x: left @ x, lambda x: left.abs() @ x, right.box))


def _add_matmul(call: _Call) -> BoundTensor:
    """beta * input + alpha * (mat1 @ mat2)."""
    added, *factors = call.operands("input", "mat1", "mat2")
    if len(call.args) > 3:
        call.refuse("it has more than three arguments by place")
    if all(map(_is_bound, factors)):
        call.refuse("both factors depend on the input")
    beta, alpha = call.number(3, "beta", 1), call.number(3, "alpha", 1)
    centre = call.apply(lambda bound: (bound.box.lower + bound.box.upper) * 0.5)
    # What is constant adds nothing to the radius. A beta or an alpha of 0 drops its term.
    widths = {"beta": abs(beta) if _is_bound(added) else 0, "alpha": abs(alpha) if any(map(_is_bound, factors)) else 0}
    radii = [(x.box.upper - x.box.lower) * 0.5 if _is_bound(x) else x.abs() for x in call.args]
    radius = call.func(*radii, **{**call.kwargs, **widths})
    return call.bind(call.apply(_value), Box(centre - radius, centre + radius))


def _einsum(call: _Call) -> BoundTensor:
    equation, *factors = call.args
    if len(factors) == 1 and isinstance(factors[0], (list, tuple)):
        factors = list(factors[0])
    bound, *others = filter(_is_bound, factors)
    if others:
        call.refuse("more than one factor depends on the input")

    def signed(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = call.func(equation, *(x if factor is bound else factor for factor in factors))
        return result

    def magnitude(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = call.func(equation, *(x if factor is bound else factor.abs() for factor in factors))
        return result

    return call.bind(signed(bound.value), intervals.affine(signed, magnitude, bound.box))


def _per_channel(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if x is None else x.reshape(1, -1, *([1] * (like.ndim - 2)))


def _gain(box: Box, gain: torch.Tensor | None, bias: torch.Tensor | None) -> Box:
    if gain is not None:
        box = intervals.scale(ops, box, gain)
    return box if bias is None else Box(box.lower + bias, box.upper + bias)


def _fixed_norm(box: Box, mean: torch.Tensor, variance: torch.Tensor, weight: Any, bias: Any, eps: float) -> Box:
    """(x - mean) / sqrt(variance + eps) for each channel, whose statistics are the same at each point of the box."""
    gain = torch.rsqrt(variance + eps)
    gain = gain if weight is None else gain * weight
    shift = -mean * gain if bias is None else bias - mean * gain
    shape = (1, -1, *([1] * (box.lower.ndim - 2)))
    gain, shift = gain.reshape(shape), shift.reshape(shape)
    return intervals.affine(lambda x: x * gain + shift, lambda x: x * gain.abs(), box)


def _batch_norm(call: _Call) -> BoundTensor:
    """Batch norm with the statistics of the data for data and box alike, so that it is one affine map."""
    bound = call.sole()
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    defaults = (None, None, None, None, False, 0.1, 1e-5)
    mean, variance, weight, bias, training, _, eps = (
        call.argument(i, name, default) for i, (name, default) in enumerate(zip(names, defaults, strict=True), start=1)
    )
    value = bound.value
    if training and not call.trace.training:
        call.refuse("without running statistics its output depends on the other points of the batch")
    result = call.on(value)
    if training:
        axes = [axis for axis in range(value.ndim) if axis != 1]
        variance, mean = torch.var_mean(value, axes, correction=0)
    return call.bind(result, _fixed_norm(bound.box, mean, variance, weight, bias, eps))


def _epsilon(call: _Call, position: int, default: float = 1e-5) -> float:
    eps = call.number(position, "eps", default)
    if not eps > 0:
        call.refuse("eps is not positive, so that it may divide by 0")
    return eps


def _standardise(bound: BoundTensor, axes: list[int], eps: float, groups: int | None = None) -> Box:
    box = bound.box
    shape = box.lower.shape
    if groups is not None:
        grouped = (shape[0], groups, -1)
        box, axes = Box(box.lower.reshape(grouped), box.upper.reshape(grouped)), [2]
    count = int(np.prod([box.lower.shape[axis] for axis in axes]))
    box = intervals.standardise(ops, box, lambda x: x.mean(axes, keepdim=True), count, eps)
    return Box(box.lower.reshape(shape), box.upper.reshape(shape))


def _layer_norm(call: _Call) -> BoundTensor:
    bound = call.sole()
    axes = list(range(-len(call.argument(1, "normalized_shape")), 0))
    box = _standardise(bound, axes, _epsilon(call, 4))
    return call.bind(call.on(bound.value), _gain(box, call.argument(2, "weight"), call.argument(3, "bias")))


def _group_norm(call: _Call) -> BoundTensor:
    bound = call.sole()
    box = _standardise(bound, [], _epsilon(call, 4), groups=call.argument(1, "num_groups"))
    weight, bias = (_per_channel(call.argument(i, name), bound.value) for i, name in ((2, "weight"), (3, "bias")))
    return call.bind(call.on(bound.value), _gain(box, weight, bias))


def _instance_norm(call: _Call) -> BoundTensor:
    bound = call.sole()
    value, eps = call.on(bound.value), _epsilon(call, 7)
    weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
    if not call.argument(5, "use_input_stats", True):
        mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
        return call.bind(value, _fixed_norm(bound.box, mean, variance, weight, bias, eps))
    box = _standardise(bound, [], eps, groups=value.shape[1])
    return call.bind(value, _gain(box, _per_channel(weight, value), _per_channel(bias, value)))


def _magnitude(box: Box) -> Box:
    """|x|."""
    nearest = torch.maximum(box.lower, -box.upper).clamp(min=0)
    return Box(nearest, torch.maximum(-box.lower, box.upper))


def _shares(box: Box, size: Box, limit: float) -> Box:
    """x / size, where size is positive and x nowhere larger than limit * size."""
    lower = torch.where(box.lower >= 0, box.lower / size.upper, box.lower / size.lower)
    upper = torch.where(box.upper >= 0, box.upper / size.lower, box.upper / size.upper)
    return Box(lower.clamp(min=-limit), upper.clamp(max=limit))


def _rms_norm(call: _Call) -> BoundTensor:
    bound = call.sole()
    shape = call.argument(1, "normalized_shape")
    axes, given = list(range(-len(shape), 0)), call.argument(3, "eps")
    eps = torch.finfo(bound.value.dtype).eps if given is None else _epsilon(call, 3)
    size = Box(*(torch.sqrt(end.square().mean(axes, keepdim=True) + eps) for end in _magnitude(bound.box)))
    box = _shares(bound.box, size, float(np.prod(shape)) ** 0.5)
    return call.bind(call.on(bound.value), _gain(box, call.argument(2, "weight"), None))


def _normalize(call: _Call) -> BoundTensor:
    """x / max(|x|_p, eps)."""
    bound = call.sole()
    p, dim, eps = call.number(1, "p", 2), call.argument(2, "dim", 1), _epsilon(call, 3, 1e-12)
    if not p > 0:
        call.refuse("p is not positive, so that it divides by no norm")
    ends = (torch.linalg.vector_norm(end, p, dim, keepdim=True).clamp(min=eps) for end in _magnitude(bound.box))
    return call.bind(call.on(bound.value), _shares(bound.box, Box(*ends), 1.0))


def _vector_norm(call: _Call) -> BoundTensor:
    """|x|_p, which never decreases in any |x_i|."""
    bound = call.sole()
    p = call.argument(1, "ord" if call.func is torch.linalg.vector_norm else "p", 2)
    if p != "fro" and not (isinstance(p, _NUMBERS) and p > 0):
        call.refuse(f"of the norms only those with a positive number have one, not {p!r}")
    return call.bind(call.on(bound.value), Box(*map(call.on, _magnitude(bound.box))))


_RANDOM = "it is random in inference mode, where each prediction would be of another network"


def _dropout(call: _Call) -> BoundTensor:
    """One mask for the data and the box: the ball goes through the same thinned network."""
    bound = call.sole()
    if not call.argument(2, "training", True) or call.number(1, "p", 0.5) == 0:
        return _same(call)
    if not call.trace.training:
        call.refuse(_RANDOM)
    mask = call.on(torch.ones_like(bound.value), **_in_place(call))
    return call.bind(bound.value * mask, Box(bound.box.lower * mask, bound.box.upper * mask))


def _in_place(call: _Call) -> dict[str, bool]:
    """On a GPU the two forms of one dropout draw other masks from the same generator."""
    return {"inplace": call.in_place} if call.func is F.dropout else {}


def _alpha_dropout(call: _Call) -> BoundTensor:
    if call.argument(2, "training", False):
        call.refuse("it puts random values in the place of units")
    return _same(call)


def _combine(call: _Call, signs: tuple[float, float]) -> BoundTensor:
    """A sum of multiples of two operands, whose coefficients have these signs."""
    operands = call.operands("input", "other")

    def end(rising: Part, falling: Part) -> torch.Tensor:
        parts = (falling if sign < 0 else rising for sign in signs)
        result: torch.Tensor = call.func(*map(_replace, operands, parts), **call.kwargs)
        return result

    return call.bind(call.apply(_value), Box(end(_lower, _upper), end(_upper, _lower)))


def _alpha(call: _Call) -> float:
    if len(call.args) > 2:
        call.refuse("it has more than two arguments by place")
    return call.number(2, "alpha", 1)


def _add(call: _Call) -> BoundTensor:
    return _combine(call, (1, _alpha(call)))


def _subtract(call: _Call) -> BoundTensor:
    alpha = _alpha(call)
    # rsub has its operands the other way round.
    reverse = call.func in (torch.rsub, _T.__rsub__)
    return _combine(call, (-alpha, 1) if reverse else (1, -alpha))


def _negative(call: _Call) -> BoundTensor:
    bound = call.sole()
    return call.bind(-bound.value, Box(-bound.box.upper, -bound.box.lower))


def _multiply(call: _Call) -> BoundTensor:
    left, right = call.operands("input", "other")
    value = call.apply(_value)
    if left is right:
        return call.bind(value, intervals.valley(ops, torch.square, 0.0, left.box))
    if _is_bound(left) and _is_bound(right):
        return call.bind(value, intervals.multiply(ops, left.box, right.box))
    one, two = call.apply(_lower), call.apply(_upper)
    return call.bind(value, Box(torch.minimum(one, two), torch.maximum(one, two)))


def _add_product(call: _Call) -> BoundTensor:
    """input + value * tensor1 * tensor2."""
    added, *factors = call.operands("input", "tensor1", "tensor2")
    call.number(3, "value", 1)
    if len(call.args) > 3:
        call.refuse("it has more than three arguments by place")
    corners = list(itertools.product(*(x.box if _is_bound(x) else (x,) for x in factors)))

    def sums(part: Part) -> list[torch.Tensor]:
        return [call.func(_replace(added, part), *corner, **call.kwargs) for corner in corners]

    box = Box(functools.reduce(torch.minimum, sums(_lower)), functools.reduce(torch.maximum, sums(_upper)))
    return call.bind(call.apply(_value), box)


def _check_divisor(call: _Call, divisor: BoundTensor) -> None:
    lower, upper = divisor.box
    if not bool(((lower > 0) | (upper < 0)).all()):
        call.refuse("it divides by a box that holds 0")


def _divide(call: _Call) -> BoundTensor:
    dividend, divisor = call.operands("input", "other")
    if call.kwargs.get("rounding_mode") is not None:
        call.refuse("rounding")
    if call.func is _T.__rdiv__:
        dividend, divisor = divisor, dividend
    if not _is_bound(divisor):
        return _multiply(call)
    _check_divisor(call, divisor)
    inverse = Box(divisor.box.upper.reciprocal(), divisor.box.lower.reciprocal())
    box = intervals.multiply(ops, dividend.box if _is_bound(dividend) else Box(dividend, dividend), inverse)
    return call.bind(call.apply(_value), box)


def _avg_pool(call: _Call) -> Any:
    if not call.number(6, "divisor_override", 1) > 0:
        call.refuse("divisor_override is not positive")
    return _monotone(call)


def _interpolate(call: _Call) -> Any:
    if call.argument(3, "mode", "nearest") not in (
        "nearest",
        "nearest-exact",
        "linear",
        "bilinear",
        "trilinear",
        "area",
    ):
        call.refuse(f"mode {call.argument(3, 'mode')!r} has negative coefficients")
    return _monotone(call)


def _changed(call: _Call, rule: Rule) -> BoundTensor:
    """An in-place function: the rule of the function proper, seen by all who share the tensor's memory."""
    target = call.input()
    if call.trace.is_severed(target):
        call.refuse("it changes a second time, in place, what another view changed before")
    # First what is seen, then the change: these are held by the network, not by us.
    aliases = call.trace.aliases(target)
    result = rule(call)
    if result.shape != target.shape:
        call.refuse(f"it changes {tuple(target.shape)} in place into {tuple(result.shape)}")
    parts = [part.to(target.dtype) for part in (result.value, *result.box)]
    updates = [_seen_through(alias, target, parts) for alias in aliases]
    for bound, (value, lower, upper) in zip((target, *aliases), (parts, *updates), strict=True):
        same = bound is target and result.dtype == target.dtype
        bound.value, bound.bounds = value, Bounds(Box(lower, upper), result.bounds.radius if same else None)
        bound.source = result.source
    if aliases:
        call.trace.sever((target, *aliases))
    return target


def _share_memory(one: BoundTensor, other: BoundTensor) -> bool:
    here = one.value.untyped_storage()
    return here.nbytes() > 0 and here.data_ptr() == other.value.untyped_storage().data_ptr()


def _seen_through(alias: BoundTensor, target: BoundTensor, changed: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Value, lower and upper end of `alias` after those of `target`, which lies in the same memory, have become `changed`."""
    here, there = alias.value, target.value
    length = here.untyped_storage().nbytes() // here.element_size()
    place = torch.full((length,), -1, device=here.device)
    entries = torch.arange(there.numel(), device=here.device).reshape(there.shape)
    place.as_strided(there.shape, there.stride(), there.storage_offset()).copy_(entries)
    entry = place.as_strided(here.shape, here.stride(), here.storage_offset())
    pairs = zip(changed, (alias.value, *alias.box), strict=True)
    return [torch.where(entry < 0, before, part.reshape(-1)[entry.clamp(min=0)]) for part, before in pairs]


def _constant(call: _Call) -> torch.Tensor:
    """A new tensor that takes shape and precision from the bound, and nothing else."""
    call.sole()
    result: torch.Tensor = call.apply(_value)
    return result


def _random(call: _Call) -> torch.Tensor:
    """The same draw for the data and the box, in training; in inference the next prediction would be another one."""
    if not call.trace.training:
        call.refuse("it is random in inference mode, where each prediction would be of another network")
    return _constant(call)


_T = torch.Tensor


def _getters(*names: str) -> list[Any]:
    """Reading these properties reaches `__torch_function__` as the property's own getter."""
    return [getattr(torch.Tensor, name).__get__ for name in names]


# fmt: off
_METADATA = {
    *_getters("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_quantized", "is_meta",
              "requires_grad", "itemsize", "is_mps", "is_nested", "is_mkldnn"),
    _T.size, _T.dim, _T.numel, _T.ndimension, _T.nelement, _T.__len__, _T.is_floating_point, _T.is_complex,
    _T.is_contiguous, _T.stride, _T.element_size, _T.get_device, torch.is_floating_point, torch.numel, torch.is_complex,
}
# fmt: on
_monotone_activation = _activation(_monotone)
# fmt: off
_ROWS: list[tuple[Rule, list[Any]]] = [
    (_add, [torch.add, _T.add, _T.__add__, _T.__radd__]),
    (_subtract, [torch.sub, torch.subtract, _T.sub, _T.__sub__, _T.subtract, torch.rsub, _T.__rsub__]),
    (_multiply, [torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__]),
    (_divide, [torch.div, torch.divide, torch.true_divide, _T.div, _T.divide, _T.true_divide, _T.__truediv__, _T.__rdiv__]),
    (_negative, [torch.neg, torch.negative, _T.neg, _T.negative, _T.__neg__]),
    (_linear, [F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
               torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
               F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.convolution]),
    (_matmul, [torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.mm, _T.mm, torch.bmm, _T.bmm, torch.mv, _T.mv]),
    (_add_matmul, [torch.addmm, _T.addmm, torch.baddbmm, _T.baddbmm]),
    (_add_product, [torch.addcmul, _T.addcmul]),
    (_einsum, [torch.einsum]),
    (_batch_norm, [F.batch_norm]),
    (_layer_norm, [F.layer_norm, torch.layer_norm]),
    (_rms_norm, [F.rms_norm, torch.rms_norm]),
    (_group_norm, [F.group_norm, torch.group_norm]),
    (_instance_norm, [F.instance_norm]),
    (_normalize, [F.normalize]),
    (_vector_norm, [torch.linalg.vector_norm, torch.norm, _T.norm]),
    (_dropout, [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout]),
    (_alpha_dropout, [F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout]),
    (_monotone_activation,
     [F.relu, torch.relu, _T.relu, F.relu6, F.sigmoid, torch.sigmoid, _T.sigmoid, F.tanh, torch.tanh, _T.tanh,
      F.softsign, F.logsigmoid, F.hardtanh, F.hardsigmoid, F.selu, torch.selu, F.tanhshrink, torch.exp, _T.exp,
      torch.expm1, _T.expm1, torch.erf, _T.erf, torch.atan, _T.atan, torch.arctan, _T.arctan]),
    (_activation(_softplus), [F.softplus]),
    (_activation(_slope_not_negative(1, "negative_slope", 0.01)), [F.leaky_relu]),
    (_activation(_slope_not_negative(1, "alpha", 1.0)), [F.elu, F.celu, torch.celu]),
    (_activation(_slope_not_negative(1, "lambd", 0.5)), [F.softshrink, F.hardshrink, torch.hardshrink, _T.hardshrink]),
    (_activation(_rrelu), [F.rrelu, torch.rrelu]),
    (_activation(_prelu), [F.prelu, torch.prelu, _T.prelu]),
    (_activation(_threshold), [F.threshold, torch.threshold]),
    (_activation(_glu), [F.glu]),
    (_activation(_valley(_gelu_argmin)), [F.gelu]),
    (_activation(_valley(intervals.SILU_ARGMIN)), [F.silu]),
    (_activation(_valley(intervals.MISH_ARGMIN)), [F.mish]),
    (_activation(_valley(-1.5)), [F.hardswish]),
    (_activation(_valley(0.0)), [torch.abs, _T.abs, _T.__abs__, torch.absolute, _T.absolute, torch.square, _T.square]),
    (_activation(_power), [torch.pow, _T.pow, _T.__pow__]),
    (_activation(_above(0.0, _monotone)), [torch.sqrt, _T.sqrt, torch.log, _T.log]),
    (_activation(_above(0.0, _falling)), [torch.rsqrt, _T.rsqrt]),
    (_activation(_above(-1.0, _monotone)), [torch.log1p, _T.log1p]),
    (_activation(_reciprocal), [torch.reciprocal, _T.reciprocal]),
    (_values, [torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
               F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, torch.max_pool1d_with_indices,
               F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.adaptive_max_pool1d,
               F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices]),
    (_extreme, [torch.max, _T.max, torch.min, _T.min]),
    (_avg_pool, [F.avg_pool2d, F.avg_pool3d]),
    (_interpolate, [F.interpolate, F.upsample]),
    (_joined, [torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack]),
    (_alike, [_T.reshape_as, _T.view_as, _T.expand_as, _T.to, _T.type_as]),
    (_view, [_T.view]),
    (_where, [torch.where, _T.where]),
    (_monotone_in_all,
     [torch.clamp, _T.clamp, torch.clamp_min, _T.clamp_min, torch.clamp_max, _T.clamp_max, torch.clip, _T.clip,
      torch.maximum, torch.minimum, _T.maximum, _T.minimum]),
    (_monotone,
     [F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d,
      torch.flatten, _T.flatten, torch.ravel, _T.ravel, torch.reshape, _T.reshape, torch.unflatten, _T.unflatten,
      torch.permute, _T.permute, torch.transpose, _T.transpose, _T.t, torch.t, torch.movedim, _T.movedim,
      torch.moveaxis, _T.moveaxis, torch.swapaxes, _T.swapaxes, torch.swapdims, _T.swapdims, *_getters("T", "mT"),
      torch.squeeze, _T.squeeze, torch.unsqueeze, _T.unsqueeze, _T.contiguous, torch.clone, _T.clone,
      _T.expand, torch.broadcast_to, _T.broadcast_to, _T.repeat, torch.repeat_interleave, _T.repeat_interleave,
      torch.tile, _T.tile, torch.chunk, _T.chunk, torch.split, _T.split, torch.tensor_split, _T.tensor_split,
      torch.unbind, _T.unbind, _T.__getitem__, torch.select, _T.select, torch.narrow, _T.narrow,
      torch.index_select, _T.index_select, torch.gather, _T.gather, torch.masked_fill, _T.masked_fill,
      torch.diagonal, _T.diagonal, torch.tril, _T.tril, torch.triu, _T.triu, _T.unfold, F.unfold, F.fold,
      torch.roll, _T.roll, torch.flip, _T.flip, F.pad, torch.constant_pad_nd,
      torch.mean, _T.mean, torch.sum, _T.sum, torch.cumsum, _T.cumsum, torch.amax, _T.amax, torch.amin, _T.amin,
      torch.logsumexp, _T.logsumexp, torch.positive, _T.positive, _T.__pos__,
      F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, _T.float, _T.double, _T.cpu, _T.cuda]),
    (_constant, [torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, _T.new_zeros, _T.new_ones, _T.new_full,
                 _T.new_empty, _T.new_tensor]),
    (_random, [torch.rand_like, torch.randn_like]),
]
# fmt: on
_RULES: dict[Any, Rule] = {function: rule for rule, functions in _ROWS for function in functions}
# Functions that change their first argument, and the same ones that return a new tensor.
# fmt: off
_IN_PLACE: dict[Any, Any] = {
    _T.__iadd__: torch.add, _T.__isub__: torch.sub, _T.__imul__: torch.mul, _T.__itruediv__: torch.div,
    torch.relu_: torch.relu, F.relu_: torch.relu, torch.sigmoid_: torch.sigmoid, torch.tanh_: torch.tanh, torch.exp_: torch.exp,
    torch.abs_: torch.abs, torch.neg_: torch.neg, torch.square_: torch.square, torch.selu_: torch.selu, torch.celu_: F.celu,
    F.leaky_relu_: F.leaky_relu, F.elu_: F.elu, F.hardtanh_: F.hardtanh, torch.threshold_: torch.threshold,
    torch.clamp_: torch.clamp, torch.clamp_min_: torch.clamp_min, torch.clamp_max_: torch.clamp_max, torch.clip_: torch.clip,
    torch.dropout_: F.dropout, torch.feature_dropout_: torch.feature_dropout,
} | {
    getattr(_T, f"{name}_"): getattr(torch, name)
    for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative", "relu",
                 "sigmoid", "tanh", "exp", "abs", "square", "clamp", "clamp_min", "clamp_max", "clip")
}
# fmt: on
_HINTS = dict.fromkeys(["softmax", "log_softmax"], FINAL_SOFTMAX)


class _StraightReLU(torch.autograd.Function):
    """ReLU whose gradient does not depend on its input where it is differentiated again; under `torch.vmap` too.

    PyTorch's own sends that second derivative, which is zero, back through the whole network.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0] > 0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        active: torch.Tensor = ctx.saved_tensors[0]
        return gradient * active


def _hard_sigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """PyTorch's own has no second derivative."""
    result = F.hardtanh(input / 6.0 + 0.5, 0.0, 1.0)
    return input.copy_(result) if inplace else result


class TwiceDifferentiated(TorchFunctionMode):
    """Inside, ReLUs are ready for a second differentiation at no needless cost, and hard sigmoids at all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return _hard_sigmoid(*args, **(kwargs or {}))
        if func in (F.relu, torch.relu, _T.relu) and not (kwargs or {}).get("inplace", False) and len(args) == 1:
            return _StraightReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """Names what a living tensor holds until it is changed in place."""
    return id(tensor), tensor._version


class Recorder(TorchFunctionMode):
    """Watches plain tensors enter nonlinearities; works for networks without interval rules too."""

    def __init__(self, trace: Trace, model: nn.Module) -> None:
        super().__init__()
        self._trace = trace
        self._sources: dict[int, str] = {}
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # an id names a tensor only while the tensor lives
        self._weights = {_state(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        # A gate that is computed from weights alone says nothing of the input, and has no box either.
        if func in _NONLINEARITIES and isinstance(first, torch.Tensor) and _state(first) not in self._weights:
            self._trace.record(self._sources.get(id(first), "input"), self.kept(first))
        of_weights = all(_state(tensor) in self._weights for tensor in _tensors((args, kwargs)))
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._alive.append(tensor)
            self._sources[id(tensor)] = self._trace.source(_name(func))
            if of_weights:
                self._weights.add(_state(tensor))
        return result

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, one for each state of the tensor: the network may work in place."""
        state = _state(tensor)
        if state not in self._kept:
            self._alive.append(tensor)
            self._kept[state] = tensor.clone()
        return self._kept[state]

    def source(self, tensor: torch.Tensor) -> str:
        return self._sources.get(id(tensor), "output")


_NONLINEARITIES = {func for func, rule in _RULES.items() if getattr(rule, "__name__", "") == "activate"}
_NONLINEARITIES |= {func for func, functional in _IN_PLACE.items() if functional in _NONLINEARITIES}

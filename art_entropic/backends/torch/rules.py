"""PyTorch: the interval rules. A rule takes a `Call` and returns what the function returns, its tensors bound."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from art_entropic import intervals
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.torch.call import NUMBERS, Call, Part, Rule, is_bound, lower_of, upper_of, value_of
from art_entropic.backends.torch.ops import ops
from art_entropic.backends.torch.tensor import METADATA, Bounds, BoundTensor, bounds_in, name_of, replaced, tensors_in
from art_entropic.ops import Box

_T = torch.Tensor


def monotone(call: Call) -> Any:
    """Never decreasing in its first argument, which is the only bound one."""
    call.sole()
    return monotone_in_all(call)


def monotone_in_all(call: Call) -> Any:
    """Never decreasing in any bound argument: the function on each part."""
    value, lower, upper = (call.apply(part) for part in (value_of, lower_of, upper_of))
    if isinstance(value, torch.Tensor):
        return call.bind(value, Box(lower, upper))
    return type(value)(call.bind(v, Box(lo, up)) for v, lo, up in zip(value, lower, upper, strict=True))


def _spread_of(x: Any) -> torch.Tensor | None:
    """The spread of an operand where it is bound and has one."""
    return x.bounds.spread if is_bound(x) else None


def moved(call: Call) -> Any:
    """Each number goes to one place at most, unchanged."""
    spread = _spread_of(call.sole())
    result = monotone(call)
    return result if spread is None else _with_spread(result, call.on(spread))


def _with_spread(result: Any, spread: Any) -> Any:
    for bound, part in zip(bounds_in(result), tensors_in(spread), strict=True):
        bound.bounds.spread = part
    return result


def moved_alike(call: Call) -> Any:
    """`alike`, each number to one place."""
    (first,) = call.operands("input")
    result, spread = alike(call), _spread_of(first)
    if spread is None:
        return result
    return _with_spread(result, call.apply(lambda bound: spread if bound is first else bound.value))


def index(call: Call) -> Any:
    key = call.argument(1, "key")
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in _tuple(key))
    # A list of places may name one twice.
    return (moved if plain else monotone)(call)


def _tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


def pad(call: Call) -> Any:
    spread, result = _spread_of(call.sole()), monotone(call)
    if spread is None or (call.func is F.pad and call.argument(2, "mode", "constant") != "constant"):
        return result
    return _with_spread(result, call.on(spread) - call.on(torch.zeros_like(spread)))


def falling(call: Call) -> BoundTensor:
    """Never increasing in its first argument, which is the only bound one."""
    bound = call.sole()
    return call.bind(call.on(bound.value), Box(call.on(bound.box.upper), call.on(bound.box.lower)))


def joined(call: Call) -> Any:
    """Several tensors that become one."""
    call.operands("tensors")
    call.unbound()
    return monotone_in_all(call)


def alike(call: Call) -> Any:
    """The first argument with the shape, precision or device of another one, of which no number is used."""
    (first,) = call.operands("input")
    return monotone_in_all(call) if is_bound(first) else call.apply(value_of)


def view(call: Call) -> Any:
    if any(isinstance(given, torch.dtype) for given in (*call.args, *call.kwargs.values())):
        call.refuse("it reinterprets the bits of its numbers as another type")
    return monotone(call)


def where(call: Call) -> Any:
    if is_bound(call.argument(1 if call.func is _T.where else 0, "condition")):
        call.refuse("its condition depends on the input")
    return monotone_in_all(call)


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
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        places = next(tensor for tensor in tensors_in((args, kwargs)) if isinstance(tensor, _Unbounded))
        raise NoIntervalRuleError(
            *places.running, hint=f"{name_of(func)!r} uses the indices of its values, and indices have no bounds"
        )


def values(call: Call) -> Any:
    """Never decreasing in its values; it may tell their places beside them."""
    call.sole()
    value, lower, upper = (call.apply(part) for part in (value_of, lower_of, upper_of))
    if isinstance(value, torch.Tensor):
        return call.bind(value, Box(lower, upper))
    places = _Unbounded(value[1], call.trace.running(name_of(call.func)))
    return type(value)((call.bind(value[0], Box(lower[0], upper[0])), places))


def extreme(call: Call) -> Any:
    """Of one tensor, along a dimension of it, or of two tensors."""
    call.operands("input")
    return monotone_in_all(call) if isinstance(call.argument(1, "other"), torch.Tensor) else values(call)


def _same(call: Call) -> BoundTensor:
    bound = call.input()
    return call.bind(bound.value, bound.bounds)


def activation(rule: Rule) -> Rule:
    """A nonlinearity: what enters it is a pre-activation."""

    def activate(call: Call) -> Any:
        bound = call.input()
        call.trace.record(bound.source, bound.bounds)
        return rule(call)

    return activate


def valley(argmin: float | Callable[[Call], float]) -> Rule:
    def rule(call: Call) -> BoundTensor:
        bound = call.sole()
        place = argmin(call) if callable(argmin) else argmin
        return call.bind(call.on(bound.value), intervals.valley(ops, call.on, place, bound.box))

    return rule


def slope_not_negative(position: int, name: str, default: float) -> Rule:
    def rule(call: Call) -> Any:
        if not call.number(position, name, default) >= 0:
            call.refuse(f"{name} is negative, so it is not monotone")
        return monotone(call)

    return rule


def prelu(call: Call) -> Any:
    """Two lines that meet at 0, the right one rising: no value is above both ends, none below the lower end and the bend."""
    bound = call.sole()
    if bool(call.argument(1, "weight").ge(0).all()):
        return monotone(call)
    lower, upper = bound.box
    left = call.on(lower)
    bend = call.on((lower * 0.0).clamp(lower, upper))
    return call.bind(call.on(bound.value), Box(torch.minimum(left, bend), torch.maximum(left, call.on(upper))))


def rrelu(call: Call) -> Any:
    if call.argument(3, "training", False):
        call.refuse("its slopes are random")
    if not call.number(1, "lower", 1 / 8) + call.number(2, "upper", 1 / 3) >= 0:
        call.refuse("its slope is negative, so it is not monotone")
    return monotone(call)


def softplus(call: Call) -> Any:
    # Above `threshold` it is the straight line, log(1 + exp(-threshold)) below the curve: from 20 on, 1e-10 of the value.
    if not (call.number(1, "beta", 1) > 0 and call.number(2, "threshold", 20) >= 20):
        call.refuse("beta is not positive, or threshold is below 20, which makes it discontinuous")
    return monotone(call)


def glu(call: Call) -> BoundTensor:
    bound = call.sole()
    dim = int(call.number(1, "dim", -1))
    (low, low_gate), (high, high_gate) = (end.chunk(2, dim) for end in bound.box)
    gate = Box(low_gate.sigmoid(), high_gate.sigmoid())
    return call.bind(call.on(bound.value), intervals.multiply(ops, Box(low, high), gate))


def above(bottom: float, rule: Rule) -> Rule:
    """A function that is defined above `bottom` alone."""

    def defined(call: Call) -> Any:
        if not bool((call.sole().box.lower > bottom).all()):
            call.refuse(f"its bounds reach {bottom:g} or less, where the function is not defined")
        return rule(call)

    return defined


def reciprocal(call: Call) -> BoundTensor:
    _check_divisor(call, call.sole())
    return falling(call)


def power(call: Call) -> Any:
    bound, exponent = call.operands("input", "exponent")
    if not is_bound(bound) or not isinstance(exponent, NUMBERS):
        call.refuse("a power has a rule only if its exponent is one fixed number")
    if exponent > 0 and float(exponent).is_integer():
        return (monotone if exponent % 2 else valley(0.0))(call)
    return above(0.0, monotone if exponent > 0 else falling)(call)


def gelu_argmin(call: Call) -> float:
    return intervals.GELU_TANH_ARGMIN if call.argument(1, "approximate") == "tanh" else intervals.GELU_ARGMIN


def threshold(call: Call) -> Any:
    call.operands("input", "threshold", "value")
    if not call.number(2, "value", 0) <= call.number(1, "threshold", 0):
        call.refuse("its value lies above its threshold, so it is not monotone")
    return monotone(call)


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


def linear(call: Call) -> BoundTensor:
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
    value, box = call.on(bound.value), Box(*_Ends.apply(centre, radius))
    if bound.bounds.spread is None:
        return call.bind(value, Bounds(box, radius))
    spread = _of_one_point(bound.bounds.spread, weight.ndim)
    return call.bind(
        value,
        intervals.within_ellipsoid(ops, box, value, lambda x: call.func(x, weight.square(), None, *rest, **options), spread),
    )


def _of_one_point(spread: torch.Tensor, rank: int) -> torch.Tensor:
    """Of all points, where it is one for all: the input's is an expanded one, as are its views."""
    return spread[:1] if spread.ndim >= rank and spread.stride(0) == 0 else spread


def matmul(call: Call) -> BoundTensor:
    left, right = call.operands("input", "other")
    if call.func is _T.__rmatmul__:
        left, right = right, left
    if is_bound(left) and is_bound(right):
        call.refuse("both factors depend on the input")

    def product(x: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor] = torch.positive) -> torch.Tensor:
        return x @ of(right) if is_bound(left) else of(left) @ x

    bound = left if is_bound(left) else right
    value, box = product(bound.value), intervals.affine(product, lambda x: product(x, torch.abs), bound.box)
    if bound.bounds.spread is not None:
        square = functools.partial(product, of=torch.square)
        box = intervals.within_ellipsoid(ops, box, value, square, bound.bounds.spread)
    return call.bind(value, box)


def add_matmul(call: Call) -> BoundTensor:
    """beta * input + alpha * (mat1 @ mat2)."""
    added, *factors = call.operands("input", "mat1", "mat2")
    if len(call.args) > 3:
        call.refuse("it has more than three positional arguments")
    if all(map(is_bound, factors)):
        call.refuse("both factors depend on the input")
    beta, alpha = call.number(3, "beta", 1), call.number(3, "alpha", 1)
    centre = call.apply(lambda bound: (bound.box.lower + bound.box.upper) * 0.5)
    # What is constant adds nothing to the radius. A beta or an alpha of 0 drops its term.
    widths = {"beta": abs(beta) if is_bound(added) else 0, "alpha": abs(alpha) if any(map(is_bound, factors)) else 0}
    radii = [(x.box.upper - x.box.lower) * 0.5 if is_bound(x) else x.abs() for x in call.args]
    radius = call.func(*radii, **{**call.kwargs, **widths})
    return call.bind(call.apply(value_of), Box(centre - radius, centre + radius))


def einsum(call: Call) -> BoundTensor:
    equation, *factors = call.args
    if len(factors) == 1 and isinstance(factors[0], (list, tuple)):
        factors = list(factors[0])
    bound, *others = filter(is_bound, factors)
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


def gain_and_shift(
    mean: torch.Tensor, variance: torch.Tensor, weight: Any, bias: Any, eps: float, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias as x * gain + shift for each channel of x, which has `rank` axes."""
    gain = torch.rsqrt(variance + eps)
    gain = gain if weight is None else gain * weight
    shift = -mean * gain if bias is None else bias - mean * gain
    shape = (1, -1, *([1] * (rank - 2)))
    return gain.reshape(shape), shift.reshape(shape)


def _fixed_norm(bounds: Bounds, gain: torch.Tensor, shift: torch.Tensor) -> Bounds:
    """x * gain + shift, which are the same at each point of the box."""
    box = intervals.affine(lambda x: x * gain + shift, lambda x: x * gain.abs(), bounds.box)
    return Bounds(box, spread=None if bounds.spread is None else bounds.spread * gain.abs())


def batch_norm(call: Call) -> BoundTensor:
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
    gain, shift = gain_and_shift(mean, variance, weight, bias, eps, value.ndim)
    if training:
        result = call.trace.standardised(result, value, gain, shift)
    return call.bind(result, _fixed_norm(bound.bounds, gain, shift))


def _epsilon(call: Call, position: int, default: float = 1e-5) -> float:
    eps = call.number(position, "eps", default)
    if not eps > 0:
        call.refuse("eps is not positive, so it may divide by 0")
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


def layer_norm(call: Call) -> BoundTensor:
    bound = call.sole()
    axes = list(range(-len(call.argument(1, "normalized_shape")), 0))
    box = _standardise(bound, axes, _epsilon(call, 4))
    return call.bind(call.on(bound.value), _gain(box, call.argument(2, "weight"), call.argument(3, "bias")))


def group_norm(call: Call) -> BoundTensor:
    bound = call.sole()
    box = _standardise(bound, [], _epsilon(call, 4), groups=call.argument(1, "num_groups"))
    weight, bias = (_per_channel(call.argument(i, name), bound.value) for i, name in ((2, "weight"), (3, "bias")))
    return call.bind(call.on(bound.value), _gain(box, weight, bias))


def instance_norm(call: Call) -> BoundTensor:
    bound = call.sole()
    value, eps = call.on(bound.value), _epsilon(call, 7)
    weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
    if not call.argument(5, "use_input_stats", True):
        mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
        fixed = gain_and_shift(mean, variance, weight, bias, eps, value.ndim)
        return call.bind(value, _fixed_norm(bound.bounds, *fixed))
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


def rms_norm(call: Call) -> BoundTensor:
    bound = call.sole()
    shape = call.argument(1, "normalized_shape")
    axes, given = list(range(-len(shape), 0)), call.argument(3, "eps")
    eps = torch.finfo(bound.value.dtype).eps if given is None else _epsilon(call, 3)
    size = Box(*(torch.sqrt(end.square().mean(axes, keepdim=True) + eps) for end in _magnitude(bound.box)))
    box = _shares(bound.box, size, float(np.prod(shape)) ** 0.5)
    return call.bind(call.on(bound.value), _gain(box, call.argument(2, "weight"), None))


def normalize(call: Call) -> BoundTensor:
    """x / max(|x|_p, eps)."""
    bound = call.sole()
    p, dim, eps = call.number(1, "p", 2), call.argument(2, "dim", 1), _epsilon(call, 3, 1e-12)
    if not p > 0:
        call.refuse("p is not positive, so it does not divide by a norm")
    ends = (torch.linalg.vector_norm(end, p, dim, keepdim=True).clamp(min=eps) for end in _magnitude(bound.box))
    return call.bind(call.on(bound.value), _shares(bound.box, Box(*ends), 1.0))


def vector_norm(call: Call) -> BoundTensor:
    """|x|_p, which never decreases in any |x_i|."""
    bound = call.sole()
    p = call.argument(1, "ord" if call.func is torch.linalg.vector_norm else "p", 2)
    if p != "fro" and not (isinstance(p, NUMBERS) and p > 0):
        call.refuse(f"only norms whose order is a positive number have a rule, not {p!r}")
    return call.bind(call.on(bound.value), Box(*map(call.on, _magnitude(bound.box))))


_RANDOM = "it is random in inference mode, so bounds of one prediction would not hold for the next"


def dropout(call: Call) -> BoundTensor:
    """One mask for the data and the box: the ball goes through the same thinned network."""
    bound = call.sole()
    if not call.argument(2, "training", True) or call.number(1, "p", 0.5) == 0:
        return _same(call)
    if not call.trace.training:
        call.refuse(_RANDOM)
    mask = call.on(torch.ones_like(bound.value), **_in_place(call))
    spread, box = bound.bounds.spread, Box(bound.box.lower * mask, bound.box.upper * mask)
    return call.bind(bound.value * mask, Bounds(box, spread=None if spread is None else spread * mask))


def _in_place(call: Call) -> dict[str, bool]:
    """On a GPU the two forms of one dropout draw other masks from the same generator."""
    return {"inplace": call.in_place} if call.func is F.dropout else {}


def alpha_dropout(call: Call) -> BoundTensor:
    if call.argument(2, "training", False):
        call.refuse("it replaces random units")
    return _same(call)


def _combine(call: Call, signs: tuple[float, float]) -> BoundTensor:
    """A sum of multiples of two operands, whose coefficients have these signs."""
    operands = call.operands("input", "other")

    def end(rising: Part, falling: Part) -> torch.Tensor:
        parts = (falling if sign < 0 else rising for sign in signs)
        result: torch.Tensor = call.func(*map(replaced, operands, parts), **call.kwargs)
        return result

    value, box = call.apply(value_of), Box(end(lower_of, upper_of), end(upper_of, lower_of))
    scales = [abs(sign) * spread for x, sign in zip(operands, signs, strict=True) if (spread := _spread_of(x)) is not None]
    return call.bind(value, Bounds(box, spread=_alone(operands, scales, value)))


def _alone(operands: list[Any], scaled: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor | None:
    """The spread of a result with constants, which must not have been repeated over a larger shape."""
    alone = len(scaled) == 1 == sum(map(is_bound, operands))
    return scaled[0] if alone and scaled[0].shape == value.shape else None


def _alpha(call: Call) -> float:
    if len(call.args) > 2:
        call.refuse("it has more than two positional arguments")
    return call.number(2, "alpha", 1)


def add(call: Call) -> BoundTensor:
    return _combine(call, (1, _alpha(call)))


def subtract(call: Call) -> BoundTensor:
    alpha = _alpha(call)
    # rsub has its operands the other way round.
    reverse = call.func in (torch.rsub, _T.__rsub__)
    return _combine(call, (-alpha, 1) if reverse else (1, -alpha))


def negative(call: Call) -> BoundTensor:
    bound = call.sole()
    return call.bind(-bound.value, Bounds(Box(-bound.box.upper, -bound.box.lower), spread=bound.bounds.spread))


def multiply(call: Call) -> BoundTensor:
    left, right = call.operands("input", "other")
    value = call.apply(value_of)
    if left is right:
        return call.bind(value, intervals.valley(ops, torch.square, 0.0, left.box))
    if is_bound(left) and is_bound(right):
        return call.bind(value, intervals.multiply(ops, left.box, right.box))
    one, two = call.apply(lower_of), call.apply(upper_of)
    (bound,) = filter(is_bound, (left, right))
    spread = bound.bounds.spread
    # Whatever has the shape of the input is scaled; a product that is larger repeats it.
    if spread is not None:
        spread = call.func(*replaced(call.args, lambda _: spread), **call.kwargs).abs() if spread.shape == value.shape else None
    return call.bind(value, Bounds(Box(torch.minimum(one, two), torch.maximum(one, two)), spread=spread))


def add_product(call: Call) -> BoundTensor:
    """input + value * tensor1 * tensor2."""
    added, *factors = call.operands("input", "tensor1", "tensor2")
    call.number(3, "value", 1)
    if len(call.args) > 3:
        call.refuse("it has more than three positional arguments")
    corners = list(itertools.product(*(x.box if is_bound(x) else (x,) for x in factors)))

    def sums(part: Part) -> list[torch.Tensor]:
        return [call.func(replaced(added, part), *corner, **call.kwargs) for corner in corners]

    box = Box(functools.reduce(torch.minimum, sums(lower_of)), functools.reduce(torch.maximum, sums(upper_of)))
    return call.bind(call.apply(value_of), box)


def _check_divisor(call: Call, divisor: BoundTensor) -> None:
    lower, upper = divisor.box
    if not bool(((lower > 0) | (upper < 0)).all()):
        call.refuse("the bounds of its divisor contain 0")


def divide(call: Call) -> BoundTensor:
    dividend, divisor = call.operands("input", "other")
    if call.kwargs.get("rounding_mode") is not None:
        call.refuse("it rounds the quotient")
    if call.func is _T.__rdiv__:
        dividend, divisor = divisor, dividend
    if not is_bound(divisor):
        return multiply(call)
    _check_divisor(call, divisor)
    inverse = Box(divisor.box.upper.reciprocal(), divisor.box.lower.reciprocal())
    box = intervals.multiply(ops, dividend.box if is_bound(dividend) else Box(dividend, dividend), inverse)
    return call.bind(call.apply(value_of), box)


def avg_pool(call: Call) -> Any:
    if not call.number(6, "divisor_override", 1) > 0:
        call.refuse("divisor_override is not positive")
    return monotone(call)


def interpolate(call: Call) -> Any:
    if call.argument(3, "mode", "nearest") not in (
        "nearest",
        "nearest-exact",
        "linear",
        "bilinear",
        "trilinear",
        "area",
    ):
        call.refuse(f"mode {call.argument(3, 'mode')!r} has negative coefficients")
    return monotone(call)


def constant(call: Call) -> torch.Tensor:
    """A new tensor that takes shape and precision from the bound, and nothing else."""
    call.sole()
    result: torch.Tensor = call.apply(value_of)
    return result


def random(call: Call) -> torch.Tensor:
    """The same draw for the data and the box, in training; in inference the next prediction would be another one."""
    if not call.trace.training:
        call.refuse(_RANDOM)
    return constant(call)

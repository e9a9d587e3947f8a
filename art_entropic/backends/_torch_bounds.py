"""Interval propagation through a user's own PyTorch forward code.

A `BoundTensor` carries the value at the data and a box around it, and answers every torch function with the rule of that
function. So whatever Python the forward method runs (functional calls, residuals, loops over modules) works without tracing;
a function without a rule is an error.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from art_entropic import intervals
from art_entropic.backends import Interval, NoIntervalRuleError
from art_entropic.backends._torch_ops import ops

# ---------------------------------------------------------------------------------------- where in the network are we


class Trace:
    """The module that is running, and the pre-activations met so far."""

    def __init__(self, model: nn.Module) -> None:
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self.layers: list[tuple[str, Any]] = []

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[Trace]:
        """Know the running module by forward hooks, which are removed on leaving."""
        handles = []

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append((names[module], module))

        def leave(*_: Any) -> None:
            self._stack.pop()

        names = {module: name for name, module in model.named_modules() if name}
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()

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


# ------------------------------------------------------------------------------------------------------ bound tensors


class BoundTensor(torch.Tensor):
    """A value and the box around it, standing in for a tensor inside a forward method. It has no storage of its own."""

    value: torch.Tensor
    box: Interval
    source: str
    path: Trace
    radius: torch.Tensor | None

    @staticmethod
    def __new__(cls, value: torch.Tensor, box: Interval, source: str, path: Trace) -> BoundTensor:
        bound: BoundTensor = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        bound.value, bound.box, bound.source, bound.path = value, box, source, path
        bound.radius = None
        return bound

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        bound = next(_bounds((args, kwargs)))
        name = _name(func)
        rule = _RULES.get(func)
        if rule is None:
            raise NoIntervalRuleError(*bound.path.running(name), hint=_HINTS.get(name, ""))
        with torch._C.DisableTorchFunctionSubclass():
            return rule(_Call(func, args, kwargs, bound.path))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Reached only by code that goes round torch functions (compiled or scripted); there is no storage to compute with.
        bound = next(_bounds((args, kwargs)))
        raise NoIntervalRuleError(*bound.path.running(_name(func)), hint="it is called below the level of torch functions")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"BoundTensor(shape={tuple(self.value.shape)}, source={self.source!r})"


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func)).strip("_")


def _bounds(tree: Any) -> Iterator[BoundTensor]:
    if isinstance(tree, BoundTensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _bounds(item)
    elif isinstance(tree, dict):
        yield from _bounds(tuple(tree.values()))


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


class _Call:
    """One torch function called with at least one `BoundTensor` among its arguments."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Trace) -> None:
        self.func, self.args, self.trace = func, args, trace
        # The parts of a bound are shared with the record of pre-activations: nothing may be changed in place.
        self.kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def unbound(self, *names: str) -> None:
        """Refuse a `BoundTensor` in any place but the first: weights that depend on the input have no rule here."""
        if next(_bounds((self.args[1:], self.kwargs)), None) is not None:
            self.refuse(f"only its first argument may depend on the input ({', '.join(names)} do here)")

    def refuse(self, hint: str) -> None:
        raise NoIntervalRuleError(*self.trace.running(_name(self.func)), hint=hint)

    def apply(self, part: Callable[[BoundTensor], torch.Tensor]) -> Any:
        """The function itself on one part of every bound."""
        return self.func(*_replace(self.args, part), **_replace(self.kwargs, part))

    def on(self, x: torch.Tensor) -> torch.Tensor:
        """The function itself on another first argument."""
        result: torch.Tensor = self.func(x, *self.args[1:], **self.kwargs)
        return result

    def bind(self, value: torch.Tensor, box: Interval) -> BoundTensor:
        return BoundTensor(value, box, self.trace.source(_name(self.func)), self.trace)

    def input(self) -> BoundTensor:
        """The first argument, which must be the bound one."""
        first = self.args[0] if self.args else self.kwargs["input"]
        if not isinstance(first, BoundTensor):
            self.refuse("its first argument does not depend on the input, but another one does")
        bound: BoundTensor = first
        if not self.args:
            self.args = (bound,)
            self.kwargs = {key: value for key, value in self.kwargs.items() if key != "input"}
        return bound


Rule = Callable[[_Call], Any]


def _value(bound: BoundTensor) -> torch.Tensor:
    return bound.value


def _lower(bound: BoundTensor) -> torch.Tensor:
    lower: torch.Tensor = bound.box.lower
    return lower


def _upper(bound: BoundTensor) -> torch.Tensor:
    upper: torch.Tensor = bound.box.upper
    return upper


def _monotone(call: _Call) -> Any:
    """Never decreasing in any bound argument: the function on each part."""
    value, lower, upper = (call.apply(part) for part in (_value, _lower, _upper))
    if isinstance(value, torch.Tensor):
        return call.bind(value, Interval(lower, upper))
    return type(value)(call.bind(v, Interval(lo, up)) for v, lo, up in zip(value, lower, upper, strict=True))


def _same(call: _Call) -> BoundTensor:
    bound = call.input()
    result = call.bind(bound.value, bound.box)
    result.radius = bound.radius
    return result


def _activation(rule: Rule) -> Rule:
    """A nonlinearity: what enters it is a pre-activation."""

    def activate(call: _Call) -> Any:
        bound = call.input()
        call.trace.record(bound.source, bound)
        return rule(call)

    return activate


def _valley(argmin: float | Callable[[_Call], float]) -> Rule:
    def rule(call: _Call) -> BoundTensor:
        bound = call.input()
        place = argmin(call) if callable(argmin) else argmin
        return call.bind(call.on(bound.value), intervals.valley(ops, call.on, place, bound.box))

    return rule


def _slope_not_negative(position: int, name: str, default: float) -> Rule:
    def rule(call: _Call) -> Any:
        slope = call.argument(position, name, default)
        if bool(torch.as_tensor(slope).lt(0).any()):
            call.refuse(f"{name} is negative, so it is not monotone")
        return _monotone(call)

    return rule


def _gelu_argmin(call: _Call) -> float:
    return intervals.GELU_TANH_ARGMIN if call.kwargs.get("approximate") == "tanh" else intervals.GELU_ARGMIN


def _threshold(call: _Call) -> Any:
    if call.argument(2, "value") > call.argument(1, "threshold"):
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
    bound = call.input()
    call.unbound("weight", "bias")
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    rest = call.args[3:]
    options = {key: value for key, value in call.kwargs.items() if key not in ("weight", "bias")}
    # The halves of (lower + upper) / 2 and (upper - lower) / 2 go into the weight, which is smaller than the batch.
    half = weight * 0.5
    total, width = _SumAndWidth.apply(*bound.box)
    centre = call.func(total, half, bias, *rest, **options)
    radius = call.func(width, half.abs(), None, *rest, **options)
    result = call.bind(call.on(bound.value), Interval(*_Ends.apply(centre, radius)))
    result.radius = radius
    return result


def _matmul(call: _Call) -> BoundTensor:
    left, right = call.args
    if isinstance(left, BoundTensor) and isinstance(right, BoundTensor):
        call.refuse("both factors depend on the input")
    if isinstance(left, BoundTensor):
        return call.bind(left.value @ right, intervals.affine(lambda x: x @ right, lambda x: x @ right.abs(), left.box))
    return call.bind(left @ right.value, intervals.affine(lambda x: left @ x, lambda x: left.abs() @ x, right.box))


def _per_channel(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if x is None else x.reshape(1, -1, *([1] * (like.ndim - 2)))


def _gain(box: Interval, gain: torch.Tensor | None, bias: torch.Tensor | None) -> Interval:
    if gain is not None:
        box = intervals.scale(ops, box, gain)
    return box if bias is None else Interval(box.lower + bias, box.upper + bias)


def _batch_norm(call: _Call) -> BoundTensor:
    """Batch norm with the statistics of the data for data and box alike, so that it is one affine map."""
    bound = call.input()
    call.unbound("statistics")
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
    gain = torch.rsqrt(variance + eps)
    gain = gain if weight is None else gain * weight
    shift = -mean * gain if bias is None else bias - mean * gain
    shape = (1, -1, *([1] * (value.ndim - 2)))
    gain, shift = gain.reshape(shape), shift.reshape(shape)
    box = intervals.affine(lambda x: x * gain + shift, lambda x: x * gain.abs(), bound.box)
    return call.bind(result, box)


def _standardise(bound: BoundTensor, axes: list[int], eps: float, groups: int | None = None) -> Interval:
    box = bound.box
    shape = box.lower.shape
    if groups is not None:
        grouped = (shape[0], groups, -1)
        box, axes = Interval(box.lower.reshape(grouped), box.upper.reshape(grouped)), [2]
    count = int(np.prod([box.lower.shape[axis] for axis in axes]))
    box = intervals.standardise(ops, box, lambda x: x.mean(axes, keepdim=True), count, eps)
    return Interval(box.lower.reshape(shape), box.upper.reshape(shape))


def _layer_norm(call: _Call) -> BoundTensor:
    bound = call.input()
    axes = list(range(-len(call.argument(1, "normalized_shape")), 0))
    box = _standardise(bound, axes, call.argument(4, "eps", 1e-5))
    return call.bind(call.on(bound.value), _gain(box, call.argument(2, "weight"), call.argument(3, "bias")))


def _group_norm(call: _Call) -> BoundTensor:
    bound = call.input()
    box = _standardise(bound, [], call.argument(4, "eps", 1e-5), groups=call.argument(1, "num_groups"))
    weight, bias = (_per_channel(call.argument(i, name), bound.value) for i, name in ((2, "weight"), (3, "bias")))
    return call.bind(call.on(bound.value), _gain(box, weight, bias))


def _instance_norm(call: _Call) -> BoundTensor:
    bound = call.input()
    if not call.argument(5, "use_input_stats", True):
        call.refuse("instance norm with running statistics")
    box = _standardise(bound, [], call.argument(7, "eps", 1e-5), groups=bound.value.shape[1])
    weight, bias = (_per_channel(call.argument(i, name), bound.value) for i, name in ((3, "weight"), (4, "bias")))
    return call.bind(call.on(bound.value), _gain(box, weight, bias))


def _dropout(call: _Call) -> BoundTensor:
    """One mask for the data and the box: the ball goes through the same thinned network."""
    bound = call.input()
    if not call.argument(2, "training", True):
        return _same(call)
    mask = call.on(torch.ones_like(bound.value))
    return call.bind(bound.value * mask, Interval(bound.box.lower * mask, bound.box.upper * mask))


def _add(call: _Call) -> Any:
    if call.kwargs.get("alpha", 1) < 0:
        call.refuse("alpha is negative")
    return _monotone(call)


def _subtract(call: _Call) -> BoundTensor:
    left, right = call.args[:2]
    if call.kwargs.get("alpha", 1) < 0:
        call.refuse("alpha is negative")

    def corner(
        minuend: Callable[[BoundTensor], torch.Tensor], subtrahend: Callable[[BoundTensor], torch.Tensor]
    ) -> torch.Tensor:
        result: torch.Tensor = call.func(_replace(left, minuend), _replace(right, subtrahend), **call.kwargs)
        return result

    # rsub has its operands the other way round.
    reverse = call.func in (torch.rsub, torch.Tensor.__rsub__)
    low, high = (_upper, _lower) if reverse else (_lower, _upper)
    return call.bind(call.apply(_value), Interval(corner(low, high), corner(high, low)))


def _negative(call: _Call) -> BoundTensor:
    bound = call.input()
    return call.bind(-bound.value, Interval(-bound.box.upper, -bound.box.lower))


def _multiply(call: _Call) -> BoundTensor:
    left, right = call.args[:2]
    if isinstance(left, BoundTensor) and isinstance(right, BoundTensor):
        return call.bind(call.apply(_value), intervals.multiply(ops, left.box, right.box))
    one, two = call.apply(_lower), call.apply(_upper)
    return call.bind(call.apply(_value), Interval(torch.minimum(one, two), torch.maximum(one, two)))


def _divide(call: _Call) -> BoundTensor:
    if isinstance(call.args[1], BoundTensor):
        call.refuse("the divisor depends on the input")
    if call.kwargs.get("rounding_mode") is not None:
        call.refuse("rounding")
    return _multiply(call)


def _max_pool(call: _Call) -> Any:
    if call.argument(6, "return_indices", False):
        call.refuse("return_indices=True")
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


def _inplace(rule: Rule, func: Any) -> Rule:
    """An in-place variant: the rule of the function proper, and the bound changes its parts."""

    def change(call: _Call) -> BoundTensor:
        target = call.input()
        before = BoundTensor(target.value, target.box, target.source, call.trace)
        result = rule(_Call(func, call.args, call.kwargs, call.trace))
        # What was recorded as a pre-activation is the tensor before the change.
        call.trace.layers = [(name, before if layer is target else layer) for name, layer in call.trace.layers]
        target.value, target.box, target.source = result.value, result.box, result.source
        target.radius = result.radius
        return target

    change.__name__ = getattr(rule, "__name__", change.__name__)
    return change


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
    (_divide, [torch.div, torch.true_divide, _T.div, _T.true_divide, _T.__truediv__]),
    (_negative, [torch.neg, torch.negative, _T.neg, _T.negative, _T.__neg__]),
    (_linear, [F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
               torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
               F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]),
    (_matmul, [torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.mm, _T.mm]),
    (_batch_norm, [F.batch_norm]),
    (_layer_norm, [F.layer_norm]),
    (_group_norm, [F.group_norm]),
    (_instance_norm, [F.instance_norm]),
    (_dropout, [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout]),
    (_monotone_activation,
     [F.relu, torch.relu, _T.relu, F.relu6, F.sigmoid, torch.sigmoid, _T.sigmoid, F.tanh, torch.tanh, _T.tanh,
      F.softplus, F.softsign, F.logsigmoid, F.hardtanh, F.hardsigmoid, F.selu, torch.selu, torch.celu, F.softshrink,
      F.hardshrink, torch.hardshrink, torch.exp, _T.exp]),
    (_activation(_slope_not_negative(1, "negative_slope", 0.01)), [F.leaky_relu]),
    (_activation(_slope_not_negative(1, "alpha", 1.0)), [F.elu, F.celu]),
    (_activation(_slope_not_negative(1, "weight", 0.25)), [F.prelu, torch.prelu, _T.prelu]),
    (_activation(_threshold), [F.threshold, torch.threshold]),
    (_activation(_valley(_gelu_argmin)), [F.gelu]),
    (_activation(_valley(intervals.SILU_ARGMIN)), [F.silu]),
    (_activation(_valley(intervals.MISH_ARGMIN)), [F.mish]),
    (_activation(_valley(-1.5)), [F.hardswish]),
    (_activation(_valley(0.0)), [torch.abs, _T.abs, _T.__abs__, torch.square, _T.square]),
    (_max_pool, [torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
                 F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices]),
    (_interpolate, [F.interpolate, F.upsample]),
    (_monotone,
     [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
      F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
      torch.adaptive_avg_pool1d, torch.adaptive_max_pool1d,
      torch.flatten, _T.flatten, torch.reshape, _T.reshape, _T.view, _T.reshape_as, _T.view_as,
      torch.unflatten, _T.unflatten, torch.permute, _T.permute, torch.transpose, _T.transpose, _T.t, torch.t,
      torch.movedim, _T.movedim, torch.swapaxes, _T.swapaxes, *_getters("T", "mT"),
      torch.squeeze, _T.squeeze, torch.unsqueeze, _T.unsqueeze, _T.contiguous, torch.clone, _T.clone,
      _T.expand, _T.expand_as, _T.repeat, torch.tile, _T.tile, torch.chunk, _T.chunk, torch.split, _T.split,
      torch.unbind, _T.unbind, _T.__getitem__, torch.narrow, _T.narrow, torch.roll, torch.flip, _T.flip,
      torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack, F.pad, torch.constant_pad_nd,
      torch.mean, _T.mean, torch.sum, _T.sum, torch.amax, _T.amax, torch.amin, _T.amin, torch.logsumexp, _T.logsumexp,
      torch.clamp, _T.clamp, torch.clamp_min, _T.clamp_min, torch.clamp_max, _T.clamp_max, torch.clip, _T.clip,
      torch.maximum, torch.minimum, _T.maximum, _T.minimum,
      F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, _T.to, _T.float, _T.type_as, _T.cpu, _T.cuda]),
    (_inplace(_add, torch.add), [_T.add_, _T.__iadd__]),
    (_inplace(_subtract, torch.sub), [_T.sub_, _T.__isub__]),
    (_inplace(_multiply, torch.mul), [_T.mul_, _T.__imul__]),
    (_inplace(_divide, torch.div), [_T.div_, _T.__itruediv__]),
    (_inplace(_monotone_activation, torch.relu), [torch.relu_, _T.relu_, F.relu_]),
    (_inplace(_monotone_activation, torch.sigmoid), [_T.sigmoid_, torch.sigmoid_]),
    (_inplace(_monotone_activation, torch.tanh), [_T.tanh_, torch.tanh_]),
]
# fmt: on

_RULES: dict[Any, Rule] = {function: rule for rule, functions in _ROWS for function in functions}

_PROBABILITIES = "the network ends in probabilities; the bound needs logits, so remove this last layer"
_HINTS = {name: _PROBABILITIES for name in ("softmax", "log_softmax")}


class _StraightReLU(torch.autograd.Function):
    """ReLU whose gradient does not depend on its input where it is differentiated again.

    PyTorch's own sends that second derivative, which is zero, back through the whole network.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x > 0)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        active: torch.Tensor = ctx.saved_tensors[0]
        return gradient * active


class TwiceDifferentiated(TorchFunctionMode):
    """Inside, ReLUs are ready for a second differentiation at no needless cost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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

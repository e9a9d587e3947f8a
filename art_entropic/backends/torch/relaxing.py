"""PyTorch: backward linear bounds in the pass that carries boxes.

The values that travel with the boxes keep their graph. Behind each nonlinearity the graph leads to the lines that bound it in
place of the nonlinearity itself, so that an ordinary gradient is a linear bound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from art_entropic import linear_bounds
from art_entropic.backends.protocol import Relaxation
from art_entropic.backends.torch import rules
from art_entropic.backends.torch.bounds import RULES, Trace
from art_entropic.backends.torch.call import NUMBERS, Call, Rule, is_bound
from art_entropic.backends.torch.ops import ops
from art_entropic.backends.torch.tensor import Bounds, BoundTensor, bounds_in
from art_entropic.linear_bounds import CURVES, Ball, Curve, Lines, Plane
from art_entropic.ops import Array, Box

_T = torch.Tensor


class _Between(torch.autograd.Function):
    """A value whose backward pass sends positive coefficients to what lies below it, negative ones to what lies above.

    That is the pass for bounds. Any other one sees the value alone.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, below: torch.Tensor, above: torch.Tensor, trace: RelaxingTrace) -> torch.Tensor:
        ctx.trace = trace
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> Any:
        if ctx.trace.bounding:
            return None, coefficients.clamp(min=0), coefficients.clamp(max=0), None
        return coefficients, None, None, None


class _Lined(torch.autograd.Function):
    """`_Between` of lines at z, in fewer passes over memory, with the gap of the lines in place of `one`."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, z: torch.Tensor, one: torch.Tensor, trace: RelaxingTrace, *lines: torch.Tensor
    ) -> torch.Tensor:
        ctx.trace, ctx.shape = trace, one.shape
        ctx.save_for_backward(value, z, *lines)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> Any:
        if not ctx.trace.bounding:
            return coefficients, *[None] * 7
        sent, gap = _Sent.apply(coefficients, *ctx.saved_tensors)
        return None, sent, gap.reshape(ctx.shape) if ctx.shape else gap.sum(), *[None] * 5


class _Sent(torch.autograd.Function):
    """Coefficients of a nonlinearity sent to its lines, and how far these lie from its value, summed over units."""

    # Not by torch.where, which takes ten times the time of a product on a processor.

    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, value: torch.Tensor, z: torch.Tensor, *lines: torch.Tensor) -> Any:
        low_slope, low_offset, high_slope, high_offset = lines
        positive = coefficients.sign().clamp_(min=0)
        slope = torch.lerp(high_slope, low_slope, positive)
        apart = torch.addcmul(value - torch.lerp(high_offset, low_offset, positive), slope, z, value=-1)
        ctx.save_for_backward(coefficients, z, positive, slope, apart)
        return coefficients * slope, (coefficients * apart).reshape(len(value), -1).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, sent: torch.Tensor, gap: torch.Tensor) -> Any:
        coefficients, z, positive, slope, apart = ctx.saved_tensors
        gap = gap.reshape(-1, *[1] * (z.ndim - 1))
        in_value = coefficients * gap
        in_slope = torch.addcmul(coefficients * sent, in_value, z, value=-1)
        in_low = [part * positive for part in (in_slope, -in_value)] if any(ctx.needs_input_grad[3:5]) else [None] * 2
        in_high = [torch.addcmul(part, part, positive, value=-1) for part in (in_slope, -in_value)]
        return torch.addcmul(sent * slope, gap, apart), in_value, -in_value * slope, *in_low, *in_high


class _Affine(torch.autograd.Function):
    """A value that is linear in x, and what the pass for bounds takes for its backward pass."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, trace: RelaxingTrace, layer: Any) -> Any:
        ctx.trace, ctx.layer = trace, layer
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> Any:
        if not ctx.trace.bounding:
            return coefficients, *[None] * 4
        return None, _Adjoint.apply(coefficients, *ctx.saved_tensors, ctx.layer), *[None] * 3


class _Adjoint(torch.autograd.Function):
    """The backward pass of a layer in its input, whose own backward pass runs the layer.

    PyTorch's way of differentiating the backward pass of a convolution takes four times as long.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, weight: torch.Tensor, layer: Any) -> torch.Tensor:
        value, x, ctx.again = layer
        ctx.save_for_backward(coefficients, weight)
        result: torch.Tensor = torch.autograd.grad(value, x, coefficients, retain_graph=True)[0]
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, shift: torch.Tensor) -> Any:
        coefficients, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        with torch.enable_grad():
            weight = weight.detach().requires_grad_(wanted)
            value = ctx.again(shift, weight)
        return value.detach(), torch.autograd.grad(value, weight, coefficients)[0] if wanted else None, None


class _Instead(torch.autograd.Function):
    """A value through whose equal the pass for bounds goes."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, equal: torch.Tensor, trace: RelaxingTrace) -> torch.Tensor:
        ctx.trace = trace
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> Any:
        return (None, coefficients, None) if ctx.trace.bounding else (coefficients, None, None)


class _Aside(torch.autograd.Function):
    """What the pass for bounds takes as constant, and any other one does not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, trace: RelaxingTrace) -> torch.Tensor:
        ctx.trace = trace
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return (None if ctx.trace.bounding else gradient), None


class RelaxingTrace(Trace):
    """A path on which every nonlinearity is bounded by lines, so that one backward pass gives a linear bound.

    Values keep the gradients that they have in the network, and boxes theirs: the bounds are differentiable.

    Args:
        x: (n, ...), raw inputs that the values depend on and their boxes do not.
        relaxation: which lines there are.
        differentiates: the bounds are.
    """

    def __init__(
        self, model: nn.Module, x: torch.Tensor, relaxation: Relaxation = "lines", *, differentiates: bool = True
    ) -> None:
        super().__init__(model)
        self.differentiates = differentiates
        self.relaxation, self._x = relaxation, x
        self.bounding = False
        self.one = torch.ones(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        self.leading: set[int] = set()

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.differentiates:
            return super().answer(func, args, kwargs)
        # Without gradients too a network is what it computes: the graph here is ours.
        with torch.inference_mode(False), torch.enable_grad():
            return super().answer(func, *_recordable((args, kwargs)))

    def rule(self, functional: Any) -> Rule | None:
        rule = super().rule(functional)
        return None if rule is None else functools.partial(self._relaxed, functional, rule)

    def _relaxed(self, functional: Any, rule: Rule, call: Call) -> Any:
        exact = _is_exact(functional, call)
        # Lines may cut the box of what enters, so they come before the rule.
        relax = None if exact or self.relaxation == "boxes" else _RELAXATIONS.get(functional)
        lines = None if relax is None else relax(self, call)
        result = rule(call)
        if self.differentiates and RULES[functional] is rules.linear:
            result.value = self._affine(call, result.value)
        for bound in bounds_in(result):
            self.passed(bound, call, exact)
            if not exact:
                box = self.box_aside(bound.box)
                bound.value = self.between(bound.value, *box) if lines is None else lines(bound.value, box)
        return result

    def passed(self, bound: BoundTensor, call: Call, exact: bool) -> None:
        """A result, before its lines."""

    def _affine(self, call: Call, value: torch.Tensor) -> torch.Tensor:
        """A value of `rules.linear`."""
        func, rest = call.func, call.args[3:]
        options = {name: given for name, given in call.kwargs.items() if name not in ("weight", "bias")}
        layer = (value, call.input().value, lambda x, weight: func(x, weight, None, *rest, **options))
        result: torch.Tensor = _Affine.apply(value, layer[1], call.argument(1, "weight"), self, layer)
        return result

    def aside(self, x: torch.Tensor) -> torch.Tensor:
        """What the pass for bounds takes as constant."""
        result: torch.Tensor = _Aside.apply(x, self)
        return result

    def box_aside(self, box: Box) -> Box:
        return Box(*map(self.aside, box))

    def standardised(self, result: torch.Tensor, value: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """An affine map all the same, though its coefficients depend on the batch."""
        equal = value * self.aside(gain) + self.aside(shift)
        instead: torch.Tensor = _Instead.apply(result, equal, self)
        return instead

    def between(self, value: torch.Tensor, below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """A value that lies below what it has above it, and above what it has below it."""
        one = self._one_like(value)
        ends = (end + self.aside(value - end) * one for end in (below, above))
        result: torch.Tensor = _Between.apply(value, *ends, self)
        return result

    def lined(self, value: torch.Tensor, z: torch.Tensor, lines: Lines) -> torch.Tensor:
        """`between` lines at z."""
        result: torch.Tensor = _Lined.apply(value, z, self._one_like(value), self, *lines.below, *lines.above)
        return result

    def _one_like(self, value: torch.Tensor) -> torch.Tensor:
        """1 for each example, in the shape of a tensor whose first axis tells them apart."""
        n = len(self._x)
        if n > 1 and value.ndim:
            self.leading.add(value.shape[0])
        if value.ndim and value.shape[0] == n:
            return self.one.reshape(n, *[1] * (value.ndim - 1))
        return self.one.sum() / n

    def lines(self, z: BoundTensor, lines_on: LinesOn) -> Lines:
        """Lines on the box of what enters a nonlinearity."""
        return lines_on(self.box_aside(z.box))

    def coefficients(self, z: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of a linear bound of sum(upstream * z): its gradient in x, and its gap at x, (n,); None where there is none."""
        self.bounding = True
        try:
            gradient, gap = torch.autograd.grad(
                z, (self._x, self.one), upstream, retain_graph=True, create_graph=self.differentiates, allow_unused=True
            )
        finally:
            self.bounding = False
        return gradient, gap

    def bound(self, z: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`LinearBound` of z (n, m)."""
        gradient, gap = self.coefficients(z, upstream)
        value = (upstream * z).sum(1)
        return value if gap is None else value - gap, torch.zeros_like(self._x) if gradient is None else gradient


class CertifyingTrace(RelaxingTrace):
    """Bounds of a network whose weights are fixed.

    Args:
        x: a leaf.
        ball: of the inputs; its radius is what a tightened box is made of.
        copies: so many points, one behind the other, are the same one.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, relaxation: Relaxation, ball: Ball, copies: int) -> None:
        super().__init__(model, x, relaxation, differentiates=False)
        self._ball, self._copies = ball, copies
        self.elements = 0
        self.work = np.zeros(len(x))
        self._multiplications = 0.0
        self._is_first = True

    def passed(self, bound: BoundTensor, call: Call, exact: bool) -> None:
        # Nothing but the pass for bounds will be taken.
        spread = bound.bounds.spread
        bound.bounds = Bounds(self.box_aside(bound.box), spread=None if spread is None else spread.detach())
        self.elements += bound.value.numel()
        if exact:
            self._multiplications += bound.value.numel() / len(self._x) * _fan_in(call)
        else:
            bound.value, self._is_first = bound.value.detach(), False

    def aside(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    # -- boxes from linear bounds

    @torch.no_grad()
    def lines(self, z: BoundTensor, lines_on: LinesOn) -> Lines:
        """Their box is made smaller first where that is wanted."""
        lines = lines_on(z.box)
        # The first affine layers have exact boxes.
        if self._is_first or z.value.shape[0] != len(self._x):
            return lines
        wide = linear_bounds.wide_units(ops, lines, z.box).cpu().numpy() > 0
        # Two passes forward and back for each unit, once for its lower end and once for its upper one.
        self.work += wide.sum(axis=1) * 4.0 * self._multiplications
        if self.relaxation != "tightened" or not wide.any():
            return lines
        n, shape = wide.shape[0], z.value.shape
        flat = Box(*(end.reshape(n, -1).cpu().numpy() for end in z.box))
        value = z.value.detach().reshape(n, -1).cpu().numpy()
        box = linear_bounds.cut(flat, value, wide, functools.partial(self.below, z.value), self._ball, self._copies)
        z.bounds = Bounds(Box(*(torch.from_numpy(end).to(z.value.detach()).reshape(shape) for end in box)))
        return lines_on(z.box)

    @torch.inference_mode(False)
    def below(self, z: torch.Tensor, coefficients: Array) -> Plane:
        """A linear bound of sum(coefficients * z) of each example."""
        n = len(self._x)
        with torch.inference_mode(False):
            gradient, gap = self.coefficients(z, torch.from_numpy(coefficients).to(z.detach()).reshape(z.shape))
        terms = coefficients * _double(z).reshape(n, -1)
        return Plane(
            terms.sum(axis=1),
            np.abs(terms).sum(axis=1),
            np.zeros(n) if gap is None else _double(gap),
            np.zeros((n, self._x[0].numel())) if gradient is None else _double(gradient).reshape(n, -1),
        )


class TorchRelaxed:
    """`Relaxed` of a PyTorch network."""

    def __init__(self, trace: CertifyingTrace, logits: BoundTensor) -> None:
        self._trace, self._logits = trace, logits
        self.logits = _double(logits.value)
        self.box = Box(*map(_double, logits.box))
        self.leading = frozenset(trace.leading)
        self.elements, self.work = trace.elements, trace.work

    def below(self, v: Array) -> Plane:
        return self._trace.below(self._logits.value, np.asarray(v))


def _double(x: torch.Tensor) -> Array:
    array: Array = x.detach().cpu().numpy().astype(np.float64)
    return array


def _recordable(tree: Any) -> Any:
    """Arguments of which a graph may keep each tensor: what was made in inference mode is copied."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone() if not is_bound(tree) and tree.is_inference() else tree
    if isinstance(tree, dict):
        return {key: _recordable(value) for key, value in tree.items()}
    return type(tree)(map(_recordable, tree)) if type(tree) in (list, tuple) else tree


def _fan_in(call: Call) -> float:
    weight = next((arg for arg in call.args[1:2] if isinstance(arg, torch.Tensor) and not is_bound(arg)), None)
    return 1.0 if weight is None or weight.ndim < 2 else weight.numel() / weight.shape[0]


LinesOn = Callable[[Box], Lines]
Lined = Callable[[torch.Tensor, Box], torch.Tensor]  # a value and its box: the value between what lies below it and above it
Relax = Callable[[RelaxingTrace, Call], Lined | None]  # None where it knows nothing better than the box


def _of_lines(lines_of: Callable[[Call], LinesOn | None]) -> Relax:
    """An element-wise nonlinearity with lines; None where its arguments are not those that the lines were proved for."""

    def relax(trace: RelaxingTrace, call: Call) -> Lined | None:
        z, lines_on = call.input(), lines_of(call)
        if lines_on is None:
            return None
        lines = trace.lines(z, lines_on)
        entered = z.value
        return lambda value, _: trace.lined(value, entered, lines)

    return relax


def _curve(name: str, *usual: tuple[int, str, float]) -> Relax:
    """One of CURVES, which is known for the usual arguments alone."""

    def lines_of(call: Call) -> LinesOn | None:
        if any(call.number(*argument) != argument[2] for argument in usual):
            return None
        return lambda box: linear_bounds.curved(ops, call.on, box, CURVES[name])

    return _of_lines(lines_of)


def _pieces(call: Call, *kinks: float) -> LinesOn:
    return lambda box: linear_bounds.curved(ops, call.on, box, Curve(kinks=kinks))


def _relu(call: Call) -> LinesOn:
    return lambda box: linear_bounds.two_pieces(ops, box)


def _leaky(call: Call) -> LinesOn | None:
    slope = call.number(1, "negative_slope", 0.01)
    return (lambda box: linear_bounds.two_pieces(ops, box, slope)) if 0 <= slope <= 1 else None


def _gelu(call: Call) -> LinesOn:
    curve = CURVES["gelu_tanh" if call.argument(1, "approximate") == "tanh" else "gelu"]
    return lambda box: linear_bounds.curved(ops, call.on, box, curve)


def _square(call: Call) -> LinesOn | None:
    if call.func in (torch.pow, _T.pow, _T.__pow__) and call.argument(1, "exponent") != 2:
        return None
    return lambda box: linear_bounds.curved(ops, torch.square, box, CURVES["square"])


def _clamp(call: Call) -> LinesOn | None:
    ends = [given for given in (*call.args[1:], *call.kwargs.values()) if given is not None]
    return _pieces(call, *map(float, ends)) if all(isinstance(end, NUMBERS) for end in ends) else None


def _hardtanh(call: Call) -> LinesOn:
    return _pieces(call, call.number(1, "min_val", -1.0), call.number(2, "max_val", 1.0))


def _convex(trace: RelaxingTrace, call: Call) -> Lined | None:
    """Convex in its only input: its own tangent below, its box above."""
    value = call.on(call.input().value)
    tangent = value if isinstance(value, torch.Tensor) else value[0]
    return lambda result, box: trace.between(result, tangent, box.upper)


def _product(trace: RelaxingTrace, call: Call) -> Lined | None:
    left, right = call.operands("input", "other")
    if left is right:
        return _of_lines(_square)(trace, call)
    shape = torch.broadcast_shapes(left.shape, right.shape)
    planes = linear_bounds.product(*(Box(*(trace.aside(end).expand(shape) for end in x.box)) for x in (left, right)))
    slanted = planes.slope * left.value + planes.other_slope * right.value
    return lambda value, _: trace.between(value, slanted + planes.offsets[0], slanted + planes.offsets[1])


def _functions(*found: Rule) -> set[Any]:
    return {function for function, rule in RULES.items() if rule in found}


# Convex, though their bounds follow the rule of what is linear.
_CONVEX = _functions(rules.values) | {torch.amax, _T.amax, torch.logsumexp, _T.logsumexp}
# The values of these are affine in what depends on the input, so that the gradient of their values is exact.
# fmt: off
_AFFINE = _functions(
    rules.multiply, rules.divide, rules.matmul, rules.add_matmul, rules.einsum, rules.add, rules.subtract, rules.negative,
    rules.linear, rules.batch_norm, rules.dropout, rules.alpha_dropout, rules.avg_pool, rules.interpolate, rules.joined,
    rules.alike, rules.moved_alike, rules.view, rules.where, rules.moved, rules.index, rules.pad, rules.monotone,
) - _CONVEX - {torch.amin, _T.amin}
_ROWS: list[tuple[Relax, list[Any]]] = [
    (_of_lines(_relu), [F.relu, torch.relu, _T.relu]),
    (_of_lines(_leaky), [F.leaky_relu]),
    (_of_lines(lambda call: _pieces(call, 0.0)),
     [F.prelu, torch.prelu, _T.prelu, torch.abs, _T.abs, _T.__abs__, torch.absolute, _T.absolute]),
    (_of_lines(lambda call: _pieces(call, 0.0, 6.0)), [F.relu6]),
    (_of_lines(lambda call: _pieces(call, -3.0, 3.0)), [F.hardsigmoid]),
    (_of_lines(_hardtanh), [F.hardtanh]),
    (_of_lines(_clamp),
     [torch.clamp, _T.clamp, torch.clamp_min, _T.clamp_min, torch.clamp_max, _T.clamp_max, torch.clip, _T.clip]),
    (_of_lines(_square), [torch.square, _T.square, torch.pow, _T.pow, _T.__pow__]),
    (_of_lines(_gelu), [F.gelu]),
    (_curve("sigmoid"), [F.sigmoid, torch.sigmoid, _T.sigmoid]),
    (_curve("tanh"), [F.tanh, torch.tanh, _T.tanh]),
    (_curve("erf"), [torch.erf, _T.erf]),
    (_curve("atan"), [torch.atan, _T.atan, torch.arctan, _T.arctan]),
    (_curve("selu"), [F.selu, torch.selu]),
    (_curve("elu", (1, "alpha", 1.0)), [F.elu, F.celu, torch.celu]),
    (_curve("softplus", (1, "beta", 1.0), (2, "threshold", 20.0)), [F.softplus]),
    (_curve("logsigmoid"), [F.logsigmoid]),
    (_curve("silu"), [F.silu]),
    (_curve("mish"), [F.mish]),
    (_curve("hardswish"), [F.hardswish]),
    (_curve("softsign"), [F.softsign]),
    (_curve("tanhshrink"), [F.tanhshrink]),
    (_convex, list(_CONVEX)),
    (_product, [torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__]),
]
# fmt: on
_RELAXATIONS: dict[Any, Relax] = {function: relax for relax, functions in _ROWS for function in functions}


def _is_exact(functional: Any, call: Call) -> bool:
    """Whether the function is affine in all that depends on the input, so that the gradient of its value bounds it."""
    if functional not in _AFFINE:
        return False
    rule = RULES[functional]
    if rule is rules.multiply:
        return not all(map(is_bound, call.operands("input", "other")))
    if rule is rules.divide:
        dividend, divisor = call.operands("input", "other")
        return not is_bound(dividend if functional is _T.__rdiv__ else divisor)
    return True

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
    """A value whose backward pass sends positive coefficients to what lies below it, negative ones to what lies above."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> Any:
        return None, coefficients.clamp(min=0), coefficients.clamp(max=0)


class RelaxingTrace(Trace):
    """A path on which every nonlinearity is bounded by lines.

    Args:
        x: (n, ...), raw inputs, a leaf that the values depend on.
        relaxation: which lines there are.
        ball: of the inputs; its radius is what a tightened box is made of.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, relaxation: Relaxation, ball: Ball, copies: int) -> None:
        super().__init__(model)
        # Without gradients too a network is what it computes: the graph here is ours.
        self.differentiates = False
        self.relaxation, self._ball, self._x, self._copies = relaxation, ball, x, copies
        self.one = torch.ones(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        self.leading: set[int] = set()
        self.elements = 0
        self.work = np.zeros(len(x))
        self._multiplications = 0.0
        self._is_first = True

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        for bound in bounds_in(result):
            box = Box(*(end.detach() for end in bound.box))
            bound.bounds = Bounds(box, spread=None if bound.bounds.spread is None else bound.bounds.spread.detach())
            self.elements += bound.value.numel()
            if exact:
                self._multiplications += bound.value.numel() / len(self._x) * _fan_in(call)
            else:
                bound.value = self._between(bound.value.detach(), *(box if lines is None else lines(bound)))
                self._is_first = False
        return result

    def _between(self, value: torch.Tensor, below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        one = self._one_like(value)
        ends = (end + (value - end.detach()) * one for end in (below, above))
        result: torch.Tensor = _Between.apply(value, *ends)
        return result

    def _one_like(self, value: torch.Tensor) -> torch.Tensor:
        """1 for each example, in the shape of a tensor whose first axis tells them apart."""
        n = len(self._x)
        if n > 1 and value.ndim:
            self.leading.add(value.shape[0])
        if value.ndim and value.shape[0] == n:
            return self.one.reshape(n, *[1] * (value.ndim - 1))
        return self.one.sum() / n

    # -- boxes from linear bounds

    def tightened(self, z: BoundTensor, lines_on: LinesOn) -> Lines:
        """Lines on the box of what enters a nonlinearity, which is made smaller first where that is wanted."""
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
            upstream = torch.from_numpy(coefficients).to(z.detach()).reshape(z.shape)
            gradient, gap = torch.autograd.grad(z, (self._x, self.one), upstream, retain_graph=True, allow_unused=True)
        terms = coefficients * _double(z).reshape(n, -1)
        return Plane(
            terms.sum(axis=1),
            np.abs(terms).sum(axis=1),
            np.zeros(n) if gap is None else _double(gap),
            np.zeros((n, self._x[0].numel())) if gradient is None else _double(gradient).reshape(n, -1),
        )


class TorchRelaxed:
    """`Relaxed` of a PyTorch network."""

    def __init__(self, trace: RelaxingTrace, logits: BoundTensor) -> None:
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
Lined = Callable[[BoundTensor], tuple[torch.Tensor, torch.Tensor]]  # of a result what lies below it and above it
Relax = Callable[[RelaxingTrace, Call], Lined | None]  # None where it knows nothing better than the box


def _of_lines(lines_of: Callable[[Call], LinesOn | None]) -> Relax:
    """An element-wise nonlinearity with lines; None where its arguments are not those that the lines were proved for."""

    def relax(trace: RelaxingTrace, call: Call) -> Lined | None:
        z, lines_on = call.input(), lines_of(call)
        if lines_on is None:
            return None
        with torch.no_grad():
            lines = trace.tightened(z, lines_on)
        return lambda _: (lines.below.at(z.value), lines.above.at(z.value))

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
    return lambda result: (tangent, result.box.upper)


def _product(trace: RelaxingTrace, call: Call) -> Lined | None:
    left, right = call.operands("input", "other")
    if left is right:
        return _of_lines(_square)(trace, call)
    shape = torch.broadcast_shapes(left.shape, right.shape)
    planes = linear_bounds.product(*(Box(*(end.expand(shape) for end in x.box)) for x in (left, right)))
    slanted = planes.slope * left.value + planes.other_slope * right.value
    return lambda _: (slanted + planes.offsets[0], slanted + planes.offsets[1])


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

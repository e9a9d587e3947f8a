"""Interval propagation through a user's own PyTorch forward code.

A `BoundTensor` carries the value at the data and a box around it, and answers every torch function with the rule of that
function. So whatever Python the forward method runs (functional calls, residuals, loops over modules) works without tracing;
a function without a rule is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from art_entropic import intervals
from art_entropic.backends.errors import FINAL_SOFTMAX, NoIntervalRuleError
from art_entropic.backends.torch import rules
from art_entropic.backends.torch.call import Call, Rule
from art_entropic.backends.torch.tensor import Bounds, BoundTensor, Path, bounds_in, getters, name_of
from art_entropic.ops import Box


class Trace(Path):
    """The path through a network, on which every torch function is answered by its rule."""

    def rule(self, functional: Any) -> Rule | None:
        """The rule of a function; None where it has none."""
        return RULES.get(functional)

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        functional = IN_PLACE.get(func, func)
        rule = self.rule(functional)
        if rule is None:
            raise NoIntervalRuleError(*self.running(name_of(func)), hint=_HINTS.get(name_of(func), ""))
        with torch._C.DisableTorchFunctionSubclass():
            in_place = functional is not func or bool(kwargs.get("inplace", False))
            call = Call(functional, args, kwargs, self, in_place)
            if kwargs.get("out") is not None:
                call.refuse("it writes into the tensor that is given as `out`")
            if self.differentiates and not torch.is_grad_enabled():
                call.refuse("it is computed without gradients (in a custom autograd.Function, or under torch.no_grad)")
            self.run(name_of(functional), _factors(name_of(functional), args, kwargs))
            return _changed(call, rule) if in_place else rule(call)


def _factors(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many factors of a product depend on the input; of a quotient with such a divisor, two."""
    if name in ("addmm", "baddbmm", "addcmul"):
        args, kwargs = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
    divides = name in ("div", "divide", "true_divide", "truediv")
    if divides and next(bounds_in((args[1:], kwargs.get("other"))), None) is not None:
        return 2
    return sum(1 for _ in bounds_in((args, kwargs)))


def _changed(call: Call, rule: Rule) -> BoundTensor:
    """An in-place function: the rule of the function proper, seen by all who share the tensor's memory."""
    target = call.input()
    if call.trace.is_severed(target):
        call.refuse("it changes memory in place that another view has changed before")
    # First what is seen, then the change: these are held by the network, not by us.
    aliases = call.trace.aliases(target)
    result = rule(call)
    if result.shape != target.shape:
        call.refuse(f"it changes the shape {tuple(target.shape)} in place to {tuple(result.shape)}")
    parts = [part.to(target.dtype) for part in (result.value, *result.box)]
    updates = [_seen_through(alias, target, parts) for alias in aliases]
    for bound, (value, lower, upper) in zip((target, *aliases), (parts, *updates), strict=True):
        same = bound is target and result.dtype == target.dtype
        radius, spread = (result.bounds.radius, result.bounds.spread) if same else (None, None)
        bound.value, bound.bounds = value, Bounds(Box(lower, upper), radius, spread)
        bound.source = result.source
    if aliases:
        call.trace.sever((target, *aliases))
    return target


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


_T = torch.Tensor
_monotone_activation = rules.activation(rules.monotone)
# fmt: off
_ROWS: list[tuple[Rule, list[Any]]] = [
    (rules.add, [torch.add, _T.add, _T.__add__, _T.__radd__]),
    (rules.subtract, [torch.sub, torch.subtract, _T.sub, _T.__sub__, _T.subtract, torch.rsub, _T.__rsub__]),
    (rules.multiply, [torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__]),
    (rules.divide,
     [torch.div, torch.divide, torch.true_divide, _T.div, _T.divide, _T.true_divide, _T.__truediv__, _T.__rdiv__]),
    (rules.negative, [torch.neg, torch.negative, _T.neg, _T.negative, _T.__neg__]),
    (rules.linear,
     [F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
      torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
      F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.convolution]),
    (rules.matmul,
     [torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.mm, _T.mm, torch.bmm, _T.bmm, torch.mv, _T.mv]),
    (rules.add_matmul, [torch.addmm, _T.addmm, torch.baddbmm, _T.baddbmm]),
    (rules.add_product, [torch.addcmul, _T.addcmul]),
    (rules.einsum, [torch.einsum]),
    (rules.batch_norm, [F.batch_norm]),
    (rules.layer_norm, [F.layer_norm, torch.layer_norm]),
    (rules.rms_norm, [F.rms_norm, torch.rms_norm]),
    (rules.group_norm, [F.group_norm, torch.group_norm]),
    (rules.instance_norm, [F.instance_norm]),
    (rules.normalize, [F.normalize]),
    (rules.vector_norm, [torch.linalg.vector_norm, torch.norm, _T.norm]),
    (rules.dropout, [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout]),
    (rules.alpha_dropout, [F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout]),
    (_monotone_activation,
     [F.relu, torch.relu, _T.relu, F.relu6, F.sigmoid, torch.sigmoid, _T.sigmoid, F.tanh, torch.tanh, _T.tanh,
      F.softsign, F.logsigmoid, F.hardtanh, F.hardsigmoid, F.selu, torch.selu, F.tanhshrink, torch.exp, _T.exp,
      torch.expm1, _T.expm1, torch.erf, _T.erf, torch.atan, _T.atan, torch.arctan, _T.arctan]),
    (rules.activation(rules.softplus), [F.softplus]),
    (rules.activation(rules.slope_not_negative(1, "negative_slope", 0.01)), [F.leaky_relu]),
    (rules.activation(rules.slope_not_negative(1, "alpha", 1.0)), [F.elu, F.celu, torch.celu]),
    (rules.activation(rules.slope_not_negative(1, "lambd", 0.5)),
     [F.softshrink, F.hardshrink, torch.hardshrink, _T.hardshrink]),
    (rules.activation(rules.rrelu), [F.rrelu, torch.rrelu]),
    (rules.activation(rules.prelu), [F.prelu, torch.prelu, _T.prelu]),
    (rules.activation(rules.threshold), [F.threshold, torch.threshold]),
    (rules.activation(rules.glu), [F.glu]),
    (rules.activation(rules.valley(rules.gelu_argmin)), [F.gelu]),
    (rules.activation(rules.valley(intervals.SILU_ARGMIN)), [F.silu]),
    (rules.activation(rules.valley(intervals.MISH_ARGMIN)), [F.mish]),
    (rules.activation(rules.valley(-1.5)), [F.hardswish]),
    (rules.activation(rules.valley(0.0)),
     [torch.abs, _T.abs, _T.__abs__, torch.absolute, _T.absolute, torch.square, _T.square]),
    (rules.activation(rules.power), [torch.pow, _T.pow, _T.__pow__]),
    (rules.activation(rules.above(0.0, rules.monotone)), [torch.sqrt, _T.sqrt, torch.log, _T.log]),
    (rules.activation(rules.above(0.0, rules.falling)), [torch.rsqrt, _T.rsqrt]),
    (rules.activation(rules.above(-1.0, rules.monotone)), [torch.log1p, _T.log1p]),
    (rules.activation(rules.reciprocal), [torch.reciprocal, _T.reciprocal]),
    (rules.values, [torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
               F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, torch.max_pool1d_with_indices,
               F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.adaptive_max_pool1d,
               F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices]),
    (rules.extreme, [torch.max, _T.max, torch.min, _T.min]),
    (rules.avg_pool, [F.avg_pool2d, F.avg_pool3d]),
    (rules.interpolate, [F.interpolate, F.upsample]),
    (rules.joined, [torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack]),
    (rules.alike, [_T.expand_as]),
    (rules.moved_alike, [_T.reshape_as, _T.view_as, _T.to, _T.type_as]),
    (rules.view, [_T.view]),
    (rules.index, [_T.__getitem__]),
    (rules.pad, [F.pad, torch.constant_pad_nd]),
    (rules.where, [torch.where, _T.where]),
    (rules.monotone_in_all,
     [torch.clamp, _T.clamp, torch.clamp_min, _T.clamp_min, torch.clamp_max, _T.clamp_max, torch.clip, _T.clip,
      torch.maximum, torch.minimum, _T.maximum, _T.minimum]),
    (rules.moved,
     [torch.flatten, _T.flatten, torch.ravel, _T.ravel, torch.reshape, _T.reshape, torch.unflatten, _T.unflatten,
      torch.permute, _T.permute, torch.transpose, _T.transpose, _T.t, torch.t, torch.movedim, _T.movedim,
      torch.moveaxis, _T.moveaxis, torch.swapaxes, _T.swapaxes, torch.swapdims, _T.swapdims, *getters("T", "mT"),
      torch.squeeze, _T.squeeze, torch.unsqueeze, _T.unsqueeze, _T.contiguous, torch.clone, _T.clone,
      torch.chunk, _T.chunk, torch.split, _T.split, torch.tensor_split, _T.tensor_split,
      torch.unbind, _T.unbind, torch.select, _T.select, torch.narrow, _T.narrow,
      torch.diagonal, _T.diagonal, torch.tril, _T.tril, torch.triu, _T.triu,
      torch.roll, _T.roll, torch.flip, _T.flip, torch.positive, _T.positive, _T.__pos__,
      F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, _T.float, _T.double, _T.cpu, _T.cuda]),
    (rules.monotone,
     [F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d,
      _T.expand, torch.broadcast_to, _T.broadcast_to, _T.repeat, torch.repeat_interleave, _T.repeat_interleave,
      torch.tile, _T.tile, torch.index_select, _T.index_select, torch.gather, _T.gather, torch.masked_fill, _T.masked_fill,
      _T.unfold, F.unfold, F.fold,
      torch.mean, _T.mean, torch.sum, _T.sum, torch.cumsum, _T.cumsum, torch.amax, _T.amax, torch.amin, _T.amin,
      torch.logsumexp, _T.logsumexp]),
    (rules.constant,
     [torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, _T.new_zeros, _T.new_ones, _T.new_full,
      _T.new_empty, _T.new_tensor]),
    (rules.random, [torch.rand_like, torch.randn_like]),
]
# fmt: on
RULES: dict[Any, Rule] = {function: rule for rule, functions in _ROWS for function in functions}
# Functions that change their first argument, and the same ones that return a new tensor.
# fmt: off
IN_PLACE: dict[Any, Any] = {
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
# Whatever enters these is a pre-activation.
NONLINEARITIES = {func for func, rule in RULES.items() if getattr(rule, "__name__", "") == "activate"}
NONLINEARITIES |= {func for func, functional in IN_PLACE.items() if functional in NONLINEARITIES}

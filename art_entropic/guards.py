"""Two questions that are asked before any result: is this the network that predicts, and are these its bounds?

Neither needs to know an operation. Whatever stands between the network and `predict`, and whatever a rule overlooks, shows in
values that differ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from art_entropic import intervals
from art_entropic.backends.errors import SAME_LOGITS, BoundsMismatchError, OutputError, check_joint_pass
from art_entropic.backends.numpy import ops
from art_entropic.backends.protocol import Backend, Relaxed
from art_entropic.linear_bounds import BOUNDS_ROUNDING, Ball
from art_entropic.ops import Array, Box
from art_entropic.perturbations import sphere, unit_ball

# Of each data set, spread over it.
COMPARED_POINTS = 16
# And so far beside them, in shares of the range of the data.
_BESIDE = 0.02
BOUNDED_EXAMPLES, BOUNDED_POINTS = 4, 64
_PLANES = 3  # random combinations of the logits whose linear bounds are tried
_SMOOTHED = ("RandomizedSmoothingMixin", "DeRandomizedSmoothingMixin")


def some_of(x: Array, number: int) -> Array:
    """At most so many points, spread evenly over all."""
    chosen: Array = x[np.unique(np.linspace(0, len(x) - 1, min(number, len(x))).astype(int))]
    return chosen


# ----------------------------------------------------------------------------------- what is judged is what predicts


def check_predictions(backend: Backend, x: Array) -> None:
    """Refuse an estimator whose `predict` says something else than the logits that are trained, attacked and bounded.

    Values must agree, or where something behind the logits only rescales them (a softmax, ART's postprocessing defences), their
    order. A postprocessing defence that keeps the order is warned of: it plays no part in what follows.

    Args:
        x: some points of the data, (n, ...), float32, raw units; a few of them are looked at.
    Raises:
        OutputError: the network returns something else than one tensor.
        ValueError: network or `predict` fail, or say different things.
    """
    estimator, kind = backend.estimator, type(backend.estimator).__name__
    # Between the points of the data too: a predict that rounds pixels differs there alone.
    chosen = some_of(x, COMPARED_POINTS)
    beside = points_of_ball(backend, some_of(x, COMPARED_POINTS // 4), _BESIDE * data_range(backend, x), 4)
    x = np.concatenate([chosen, beside])
    logits = _answer(backend, backend.logits, x, "its network")
    if set(_SMOOTHED) & {base.__name__ for base in type(estimator).__mro__}:
        raise ValueError(_another_network(kind, "smooths the network over random or ablated copies of each input"))
    predictions = _answer(backend, backend.predict, x, "its predict")
    if predictions.shape != logits.shape:
        raise ValueError(_another_network(kind, f"returns the shape {predictions.shape}, its network {logits.shape}"))
    if not np.isfinite(logits).all():
        return  # which `check_logits` refuses
    # A network that answers differently each time agrees with itself that far only.
    noise = float(np.max(np.abs(logits - backend.logits(x)), initial=0.0))
    tolerance = SAME_LOGITS * float(np.max(np.abs(logits), initial=0.0)) + 10.0 * noise
    difference = float(np.max(np.abs(predictions - logits), initial=0.0))
    if difference <= tolerance:
        return
    defences = [type(one).__name__ for one in estimator.postprocessing_defences or ()]
    behind = f" behind {', '.join(defences)}" if defences else ""
    if not defences and _is_rescaled(logits, predictions, tolerance):
        return
    if defences and _keeps_the_order(logits, predictions, tolerance):
        after = np.asarray(estimator._apply_postprocessing(logits.astype(np.float32), fit=False), np.float64)
        if np.max(np.abs(after - predictions), initial=0.0) <= tolerance:
            warnings.warn(
                f"`classifier` has the postprocessing defence {', '.join(defences)}, which keeps the order of the classes: "
                "training, attacks and bounds use the logits before it",
                stacklevel=3,
            )
            return
    raise ValueError(_another_network(kind, f"differs from its network's logits by up to {difference:.3g}{behind}"))


def data_range(backend: Backend, x: Array) -> float:
    """Of the data: that of `clip_values`, else of x."""
    clip_values = backend.estimator.clip_values
    if clip_values is None:
        return float(np.ptp(x)) or 1.0
    return float(np.max(np.asarray(clip_values[1]) - np.asarray(clip_values[0])))


def _answer(backend: Backend, ask: Callable[[Array], Array], x: Array, what: str) -> Array:
    try:
        return np.asarray(ask(x), np.float64)
    except OutputError:
        raise
    except Exception as error:
        if backend.is_out_of_memory(error):
            raise
        raise ValueError(f"`classifier` must answer on `x`, but {what} fails with {type(error).__name__}: {error}") from error


def _another_network(kind: str, what: str) -> str:
    return (
        f"`classifier` must predict by the logits of its network, but the predict of {kind} {what}. Results would be those of "
        "`classifier.model` alone, which does not predict alone: to work with it, wrap it in a plain classifier of ART"
    )


def _is_rescaled(logits: Array, predictions: Array, tolerance: float) -> bool:
    """Whether predictions, or their logarithms or log odds, are one multiple of the logits, each row shifted by a number.

    So they are behind a temperature, a softmax, its logarithm or a sigmoid, and behind nothing that looks at the input.
    """
    one = predictions.min(initial=0.0) >= 0.0 and predictions.max(initial=0.0) <= 1.0
    found = [(predictions, np.ones(predictions.shape, bool))]
    if one:
        # Where float32 still tells how far from 0, or from 1.
        p = np.clip(predictions, 1e-30, 1.0)
        found.append((np.log(p), predictions > 1e-30))
        odds = np.clip(predictions, 1e-30, 1.0 - 1e-3)
        found.append((np.log(odds) - np.log1p(-odds), (predictions > 1e-30) & (predictions < 1.0 - 1e-3)))
    return any(_is_one_multiple(logits, values, told, tolerance) for values, told in found)


def _is_one_multiple(logits: Array, values: Array, told: Array, tolerance: float) -> bool:
    """Whether values = slope * logits + a number of each row, with one slope > 0, where `told`; elsewhere the order holds."""
    rows = told.sum(axis=1) > 1
    if not rows.any():
        return False
    inside = told[rows]
    of_logits, of_values = (
        np.where(inside, part[rows] - np.mean(part[rows], axis=1, where=inside, keepdims=True), 0.0)
        for part in (logits, values)
    )
    square = float(np.sum(of_logits**2))
    slope = float(np.sum(of_logits * of_values)) / square if square > 0 else 0.0
    if slope <= 0.0:
        return False
    scale = float(np.max(np.abs(of_values)))
    off = float(np.max(np.abs(of_values - slope * of_logits)))
    return off <= slope * tolerance + SAME_LOGITS * scale and _keeps_the_order(logits, values, tolerance)


def _keeps_the_order(logits: Array, predictions: Array, tolerance: float) -> bool:
    """Whether no row turns the order of two classes round; it may merge them."""
    order = np.argsort(-logits, axis=1)
    z, p = (np.take_along_axis(values, order, axis=1) for values in (logits, predictions))
    return bool(np.all((p[:, :-1] >= p[:, 1:]) | (z[:, :-1] - z[:, 1:] <= tolerance)))


# ------------------------------------------------------------------------------------- bounds belong to the network


def check_bounds(backend: Backend, x: Array, eps: float, norm: float = math.inf) -> None:
    """Send random points of the ball around a few examples, and of its surface, through the network: all must lie in the box.

    Args:
        x: points of the data, (n, ...), float32, raw units.
        eps: radius, in the units of x.
        norm: of the ball, infinity or 2.
    Raises:
        NoIntervalRuleError: an operation has no rule.
        BoundsMismatchError: a point lies outside by more than the rounding of float32 (1e-5 of the layer's largest value), or
            the logits of a point depend on the other points of its batch.
    """
    number = min(BOUNDED_EXAMPLES, len(x))
    copies = int(np.clip(len(x) // 2, 16, BOUNDED_POINTS)) // number
    examples = some_of(x, number)
    _check_alone(backend, examples)
    box = backend.logit_bounds(examples, eps, norm=norm)
    points = points_of_ball(backend, examples, eps, copies, norm)
    far = _outside(backend.logits(points), box, copies)
    if far is not None:
        boxes = backend.intervals(examples, eps, norm=norm)
        raise BoundsMismatchError(_first_outside(backend, points, boxes, copies) or list(boxes)[-1], far)


def check_planes(backend: Backend, x: Array, relaxed: Relaxed, ball: Ball) -> None:
    """Send points of the ball through the network, the one among them that a linear bound calls worst: all must lie above it.

    Args:
        x: a few examples, (n, ...), float32, raw units.
        relaxed: their pass.
        ball: around them.
    Raises:
        BoundsMismatchError: a margin of a point lies below the plane that bounds it.
    """
    n, nb_classes = relaxed.logits.shape
    rng = np.random.default_rng(0)
    for _ in range(_PLANES):
        v = rng.normal(size=(n, nb_classes))
        plane = relaxed.below(v)
        shifts = [
            ball.farthest(plane.gradient),
            ball.farthest(-plane.gradient),
            ball.farthest(rng.normal(size=ball.lower.shape)),
        ]
        for shift in shifts:
            points = (x + shift.reshape(x.shape)).astype(np.float32)
            height = (v * backend.logits(points)).sum(axis=1)
            moved = points.reshape(n, -1).astype(np.float64) - x.reshape(n, -1)
            terms = plane.terms + plane.gap + (np.abs(plane.gradient) * np.abs(moved)).sum(axis=1)
            missing = plane.value - plane.gap + (plane.gradient * moved).sum(axis=1) - height
            slack = BOUNDS_ROUNDING * terms
            if not (missing <= slack).all() and np.isfinite(plane.gradient).all():
                raise BoundsMismatchError("logits", f"a point of the ball lies below its linear bound by {missing.max():.3g}")


def check_single_points(backend: Backend, x: Array) -> None:
    """Refuse a network that cannot answer on one point by itself: what is left of an attack's last batch may be one point.

    Raises:
        ValueError: it fails, or returns logits of another shape.
    """
    one, two = (_answer(backend, backend.logits, x[:n], f"its network, on a batch of {n},") for n in (1, 2))
    if one.shape != (1, *two.shape[1:]):
        raise ValueError(f"`classifier` must answer on `x`, but a batch of one point gets logits of shape {one.shape}")


def change_in_company(backend: Backend, x: Array) -> float:
    """Largest change of a logit between a point by itself and the same point among others, relative to the largest logit.

    What rounding may explain (1e-4) counts as 0.

    Args:
        x: points of the data, (n, ...), float32, raw units; a few of them are looked at.
    """
    x = some_of(x, BOUNDED_EXAMPLES)
    together = _among_others(backend, x)
    return _change(together, np.concatenate(_one_by_one(backend, x))) / max(float(np.max(np.abs(together))), 1e-30)


def _change(logits: Array, others: Array) -> float:
    """Largest difference of a logit, 0.0 where rounding may explain it."""
    difference = float(np.max(np.abs(logits - others), initial=0.0))
    return 0.0 if difference <= SAME_LOGITS * np.max(np.abs(logits), initial=0.0) else difference


def _one_by_one(backend: Backend, x: Array) -> list[Array]:
    return [backend.logits(x[index : index + 1]) for index in range(len(x))]


def _among_others(backend: Backend, x: Array) -> Array:
    """Logits of the points of x in the company of others: each mirrored in the middle of the data's range."""
    clip_values: Any = backend.estimator.clip_values
    ends = (np.min(x), np.max(x)) if clip_values is None else clip_values
    mirrored: Array = (np.asarray(ends[0]) + np.asarray(ends[1]) - x).astype(np.float32)
    return np.asarray(backend.logits(np.concatenate([x, mirrored])), np.float64)[: len(x)]


def _check_alone(backend: Backend, x: Array) -> None:
    """Refuse a network that answers otherwise in other company, or the next time: its bounds hold for this batch alone."""
    together = _among_others(backend, x)
    try:
        parts = _one_by_one(backend, x)
    except Exception as error:
        if backend.is_out_of_memory(error):
            raise
        raise BoundsMismatchError(
            "logits", f"a batch of one point fails with {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if any(part.shape != together[:1].shape for part in parts):
        raise BoundsMismatchError("logits", f"a batch of one point gets logits of shape {parts[0].shape}")
    alone = _change(together, np.concatenate(parts))
    if not alone:
        return
    again = _change(together, _among_others(backend, x))
    if again:
        raise BoundsMismatchError("logits", f"it gives different logits each time (the same points differ by {again:.3g})")
    raise BoundsMismatchError(
        "logits", f"its logits depend on the other points of the batch (a point alone differs by {alone:.3g})"
    )


def check_training_bounds(backend: Backend, x: Array, eps: float, norm: float = math.inf) -> None:
    """Refuse bounds whose pass in training mode gives other logits than the network in training mode.

    Raises:
        NoIntervalRuleError: an operation has no rule in this mode.
        BoundsMismatchError: the two differ by more than rounding.
    """
    plain, joint = backend.both_logits(x, eps, training=True, norm=norm)
    check_joint_pass(plain, joint, lambda: "logits")


def points_of_ball(backend: Backend, x: Array, eps: float, copies: int, norm: float = math.inf) -> Array:
    """(len(x) * copies, ...): random points of the ball around each example and of its surface, with two extreme corners."""
    rng = np.random.default_rng(0)
    clip_values: Any = backend.estimator.clip_values
    lower, upper = (end[:, None] for end in intervals.ball(ops, x, eps, clip_values))
    if not math.isinf(norm):
        steps = unit_ball(rng, (copies * len(x), *x.shape[1:]), norm)
        steps[::2] = sphere(rng, steps[::2].shape)
        steps = steps.reshape(copies, *x.shape).swapaxes(0, 1)
        within: Array = np.clip(x[:, None] + eps * steps, lower, upper).astype(np.float32)
        return within.reshape(-1, *x.shape[1:])
    share = rng.uniform(size=(len(x), copies, *x.shape[1:]))
    share[:, ::2] = share[:, ::2] > 0.5
    share[:, 0], share[:, 1] = 0.0, 1.0
    points: Array = np.clip(lower + share * (upper - lower), lower, upper).astype(np.float32)
    return points.reshape(-1, *x.shape[1:])


def _outside(values: Array, box: Box, copies: int) -> str | None:
    """How far the values of the points of each example lie outside its box, in words; None where all lie inside."""
    values = np.asarray(values, np.float64).reshape(len(box.lower), copies, -1)
    lower, upper = (np.asarray(end, np.float64).reshape(len(box.lower), 1, -1) for end in box)
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        return None  # bounds that left float32 bound nothing, and certify nothing
    far = float(np.max(np.maximum(lower - values, values - upper), initial=0.0))
    scale = max(float(np.max(np.abs(part), initial=0.0)) for part in (values, lower, upper))
    if far <= BOUNDS_ROUNDING * scale and np.isfinite(values).all():
        return None
    return f"a point of the ball lies outside by {far:.3g}, where values go up to {scale:.3g}"


def _first_outside(backend: Backend, points: Array, boxes: dict[str, Box], copies: int) -> str | None:
    values = backend.activations(points)
    return next((name for name, box in boxes.items() if name in values and _outside(values[name], box, copies)), None)

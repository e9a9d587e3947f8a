"""Certificates: points whose decision no perturbation of the ball can change, proved by bounds on the margins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from art_entropic._validate import check_logits, check_points, check_radius, choice, norm_of, positive_int
from art_entropic.backends.protocol import Backend, Relaxation, Relaxed
from art_entropic.backends.registry import backend_for
from art_entropic.guards import check_bounds, check_planes, check_predictions, some_of
from art_entropic.linear_bounds import BOUNDS_ROUNDING, Ball, Plane
from art_entropic.ops import Array, Box

# What each method bounds nonlinearities by, from the cheapest on.
METHODS: dict[str, Relaxation] = {"ibp": "boxes", "crown-ibp": "lines", "crown": "tightened"}
BEST = "best"
# Of multiplications that `best` spends on "crown" for one point: about 50 ms on one core.
_AFFORDABLE = 2.5e8
# On so many points `best` tries linear bounds before they run on all.
TRIED = 16
# A pass may hold so much memory. Each number of it is there in some dozen forms: value, ends, lines, and their graphs.
_PASS_BYTES, _BYTES_PER_ELEMENT = 600e6, 60


@dataclass(frozen=True, eq=False)
class Certificates:
    """The certified points, and the methods that proved them.

    Attributes:
        proved: bool (n,), points that are classified right for every perturbation of the ball.
        by: for each method the points that it was the first to prove, bool (n,); methods that did not run are missing.
        left_out: for each missing method the reason.
    """

    proved: Array
    by: dict[str, Array]
    left_out: dict[str, str]

    @property
    def nothing_because(self) -> str | None:
        """Why no point is proved, in words; None where one is."""
        if self.proved.any():
            return None
        left_out = "".join(f"; {name} was left out, since {reason}" for name, reason in self.left_out.items())
        return f"no point is proved by {' or '.join(self.by)}{left_out}"


def certify(
    classifier: Any, x: Any, y: Any, eps: float, norm: float | str = "inf", method: str = BEST, *, batch_size: int = 256
) -> Array:
    """Find the points that are certified: classified right for every perturbation |d| <= eps within clip_values.

    Args:
        classifier: ART PyTorchClassifier, TensorFlowV2Classifier or KerasClassifier that returns logits.
        x: points, (n, ...), in the raw units of the estimator.
        y: class indices (n,) or one-hot rows (n, nb_classes).
        eps: radius of the ball, in the units of x.
        norm: norm of the ball: "inf" or np.inf, or 2.
        method: "ibp" uses interval bounds, with the last affine layers merged into the margins. "crown-ibp" uses backward
            linear bounds on interval boxes. "crown" first cuts these boxes at their own linear bounds. "best" tries all three
            in turn, each on the points that are still unproved; it runs linear bounds only if they prove one of the 16 points
            with the largest margins, and "crown" only if it takes no more than about 50 ms per point on one core.
        batch_size: largest number of points at a time; large networks take fewer.
    Returns:
        Booleans, (n,). Bounds are float32; a margin within their rounding, 1e-5 of what it is computed from, certifies
        nothing. A point without a certificate may still be robust.
    Raises:
        ValueError, TypeError: an argument is wrong, or the classifier does not predict by the logits of its network.
        NoIntervalRuleError: the network has an operation without an interval rule.
        BoundsMismatchError: the bounds do not hold for this network: logits differ, or a point of the ball lies outside.
    """
    return certificates(classifier, x, y, eps, norm, method, batch_size=batch_size).proved


def certificates(
    classifier: Any, x: Any, y: Any, eps: float, norm: float | str = "inf", method: str = BEST, *, batch_size: int = 256
) -> Certificates:
    """Do the work of `certify`, and say which method proved which point."""
    backend = backend_for(classifier)
    exponent = norm_of(norm, (math.inf, 2.0))
    choice("method", method, (*METHODS, BEST))
    eps = check_radius(eps, exponent, classifier.clip_values, tuple(classifier.input_shape))
    x, labels = check_points(classifier, x, y)
    batch_size = positive_int("batch_size", batch_size)
    check_predictions(backend, x)
    check_logits(backend.logits(some_of(x, 2)), classifier.nb_classes)
    check_bounds(backend, x, eps, exponent)
    logits = backend.logits(x)
    prover = _Prover(backend, eps, exponent, batch_size, x)
    # The likeliest first: where these have no certificate, the others have none.
    left = np.flatnonzero(logits.argmax(axis=1) == labels)
    left = left[np.argsort(-_margins(logits[left], labels[left]), kind="stable")]
    result = Certificates(np.zeros(len(x), bool), {}, {})
    for name in METHODS if method == BEST else (method,):
        tried = method == BEST and name != "ibp" and len(left)
        reason = prover.not_worth_it(METHODS[name], x[left], labels[left]) if tried else None
        if reason is not None:
            result.left_out[name] = reason
            continue
        found = prover.proves(METHODS[name], x[left], labels[left])
        result.by[name] = np.zeros(len(x), bool)
        result.by[name][left[found]] = True
        result.proved[left[found]] = True
        left = left[~found]
    return result


def _margins(logits: Array, y: Array) -> Array:
    """Of the label over the runner-up class, (n,)."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, y] = -np.inf
    margins: Array = logits[rows, y] - others.max(axis=1)
    return margins


class _Prover:
    """Bounds of margins, chunk by chunk, in no more memory than a pass may hold."""

    def __init__(self, backend: Backend, eps: float, norm: float, batch_size: int, x: Array) -> None:
        self._backend, self._eps, self._norm = backend, eps, norm
        self._clip = backend.estimator.clip_values
        two, three = (self._pass(x[:1].repeat(n, axis=0), "boxes") for n in (2, 3))
        # Where the first axis of some tensor is not that of the examples, nobody can tell whose bound a number is.
        apart = two.leading <= {2} and three.leading <= {3} and self._alone_as_together(some_of(x, 3))
        fitting = int(_PASS_BYTES / (_BYTES_PER_ELEMENT * two.elements / 2))
        self._size = min(batch_size, max(1, fitting)) if apart else 1

    def _alone_as_together(self, x: Array) -> bool:
        """Whether a few examples have the linear bounds in company that each has alone: their order is kept on the way."""

        def bounds(x: Array) -> Array:
            relaxed = self._pass(x, "lines")
            return relaxed.below(np.ones(relaxed.logits.shape)).least(self._ball(x))

        together, alone = bounds(x), np.concatenate([bounds(x[i : i + 1]) for i in range(len(x))])
        return bool(np.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(np.max(np.abs(alone), initial=0.0))))

    def _pass(self, x: Array, relaxation: Relaxation) -> Relaxed:
        copies = max(1, self._size // len(x)) if relaxation == "tightened" else 1
        relaxed = self._backend.relaxed(x.repeat(copies, axis=0), self._eps, self._norm, relaxation, copies)
        return _OfCopies(relaxed, copies) if copies > 1 else relaxed

    def _chunks(self, n: int) -> Iterator[slice]:
        return (slice(start, start + self._size) for start in range(0, n, self._size))

    def not_worth_it(self, relaxation: Relaxation, x: Array, y: Array) -> str | None:
        """Why a method is not worth running on these points, the likeliest of which come first; None where it is."""
        trial = slice(0, min(self._size, TRIED))
        if relaxation == "tightened":
            work = float(np.mean(self._pass(x[trial], "lines").work))
            if work > _AFFORDABLE:
                return f"it would take {work / _AFFORDABLE:.1f} times as long as the 50 ms a point that are worth it"
        if not self.proves(relaxation, x[:TRIED], y[:TRIED]).any():
            return f"it proves none of the {len(x[:TRIED])} likeliest points"
        return None

    def proves(self, relaxation: Relaxation, x: Array, y: Array) -> Array:
        """Bool (n,), the points whose every margin is positive over the ball."""
        found = np.zeros(len(x), bool)
        for chunk in self._chunks(len(x)):
            if chunk.start == 0:
                some = some_of(x, min(4, self._size))
                check_planes(self._backend, some, self._pass(some, relaxation), self._ball(some))
            found[chunk] = _margins_hold(self._pass(x[chunk], relaxation), self._ball(x[chunk]), y[chunk])
        return found

    def _ball(self, x: Array) -> Ball:
        return Ball.around(x, self._eps, self._norm, self._clip)


class _OfCopies:
    """`Relaxed` of examples each of which went through the network several times, so that many units are bounded at once."""

    def __init__(self, relaxed: Relaxed, copies: int) -> None:
        self._relaxed, self._copies, self._first = relaxed, copies, slice(None, None, copies)
        self.logits, self.box = relaxed.logits[self._first], Box(*(end[self._first] for end in relaxed.box))
        self.leading, self.elements, self.work = relaxed.leading, relaxed.elements, relaxed.work[self._first]

    def below(self, v: Array) -> Plane:
        return self._relaxed.below(v.repeat(self._copies, axis=0)).rows(self._first)


def _margins_hold(relaxed: Relaxed, ball: Ball, y: Array) -> Array:
    """Bool (n,), whether the label beats every rival over the ball.

    A point's rivals are asked one by one, the one first to which its boxes leave the most room; a lost one ends it. Boxes that
    leave none need no plane.
    """
    n, nb_classes = relaxed.logits.shape
    rows, (lower, upper) = np.arange(n), relaxed.box
    slack = BOUNDS_ROUNDING * np.maximum(np.abs(lower), np.abs(upper)).max(axis=1)
    room = upper - lower[rows, y][:, None] + slack[:, None]
    room[rows, y] = -np.inf
    order = np.argsort(-room, axis=1)
    holds: Array = np.isfinite(slack)
    for number in range(nb_classes - 1):
        rival = order[:, number]
        open_ = holds & ~(room[rows, rival] < 0)
        if not open_.any():
            break
        v = np.zeros((n, nb_classes))
        v[open_, y[open_]], v[open_, rival[open_]] = 1.0, -1.0
        holds &= ~open_ | (relaxed.below(v).least(ball) > 0)
    return holds

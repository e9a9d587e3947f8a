"""What formulas need of a framework: `Ops`, the handful of differentiable operations, and boxes of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Tensor = Any  # a tensor of whichever framework is in play: np.ndarray, torch.Tensor or tf.Tensor
Array = np.ndarray


class Ops(Protocol):
    """Differentiable operations over one framework's tensors. Operators (+ - * / < >= @) come with the tensors."""

    def abs(self, x: Tensor) -> Tensor: ...
    def relu(self, x: Tensor) -> Tensor: ...
    def log1p(self, x: Tensor) -> Tensor: ...
    def sqrt(self, x: Tensor) -> Tensor: ...
    def minimum(self, x: Tensor, y: Tensor) -> Tensor: ...
    def maximum(self, x: Tensor, y: Tensor) -> Tensor: ...
    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor: ...
    def sum(self, x: Tensor, axis: int | None = None) -> Tensor: ...
    def mean(self, x: Tensor, axis: int | None = None) -> Tensor: ...
    def max(self, x: Tensor, axis: int) -> Tensor: ...
    def largest(self, x: Tensor, k: int) -> Tensor: ...  # the k largest of each row, in descending order
    def cumsum(self, x: Tensor, axis: int) -> Tensor: ...
    def one_hot(self, index: Tensor, depth: int) -> Tensor: ...  # index: whole numbers of any dtype
    def softmax(self, x: Tensor) -> Tensor: ...
    def log_softmax(self, x: Tensor) -> Tensor: ...
    def flatten(self, x: Tensor) -> Tensor: ...  # (n, ...) -> (n, m)
    def reshape_like(self, x: Tensor, like: Tensor) -> Tensor: ...
    def constant(self, values: Sequence[float], like: Tensor) -> Tensor: ...  # (m,), of the precision and on the device of like
    def cast_like(self, x: Tensor, like: Tensor) -> Tensor: ...  # also booleans, to 0.0 and 1.0
    def constant_of(self, x: Tensor) -> Tensor: ...  # x, through which no gradient flows
    def concatenate(self, x: Tensor, y: Tensor) -> Tensor: ...  # along the first axis
    def parts(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The first rows, `share` of all in (0, 1), and the others, two rows or more each, so that both have batch statistics.

        Fewer than four rows are not divided: then both parts are all of them.
        """

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]: ...  # of the first axis, of even length
    def gram(self, x: Tensor, axis: int) -> Tensor: ...  # (n, m): x x^T / n (axis 0) or x^T x / n (axis 1), in float64
    def logdet1p(self, x: Tensor) -> Tensor: ...  # log det(I + x) of a Gram matrix; NaN, not an error, if x is not finite


def division(n: int, share: float) -> tuple[int, int]:
    """Where the first of the two parts of `Ops.parts` ends and the other one begins, for n rows of known number."""
    if n < 4:
        return n, 0
    place = min(max(round(share * n), 2), n - 2)
    return place, place


class Box(NamedTuple):
    """An axis-aligned box around a tensor: lower <= value <= upper for every input of the ball."""

    lower: Tensor
    upper: Tensor


def concatenated(parts: Sequence[Box]) -> Box:
    """The boxes of batches as those of all points."""
    return Box(np.concatenate([part.lower for part in parts]), np.concatenate([part.upper for part in parts]))

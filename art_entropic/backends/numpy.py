"""NumPy as an `Ops`: the float64 reference and the oracle of the tests. No gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_entropic.ops import Tensor, division


class NumpyOps:
    """`Ops` over NumPy arrays."""

    def abs(self, x: Tensor) -> Tensor:
        return np.abs(x)

    def relu(self, x: Tensor) -> Tensor:
        return np.maximum(x, 0.0)

    def log1p(self, x: Tensor) -> Tensor:
        return np.log1p(x)

    def sqrt(self, x: Tensor) -> Tensor:
        return np.sqrt(x)

    def minimum(self, x: Tensor, y: Tensor) -> Tensor:
        return np.minimum(x, y)

    def maximum(self, x: Tensor, y: Tensor) -> Tensor:
        return np.maximum(x, y)

    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return np.where(condition, x, y)

    def sum(self, x: Tensor, axis: int | None = None) -> Tensor:
        return np.sum(x, axis=axis)

    def mean(self, x: Tensor, axis: int | None = None) -> Tensor:
        return np.mean(x, axis=axis)

    def max(self, x: Tensor, axis: int) -> Tensor:
        return np.max(x, axis=axis)

    def largest(self, x: Tensor, k: int) -> Tensor:
        return np.sort(x, axis=1)[:, : -k - 1 : -1]

    def cumsum(self, x: Tensor, axis: int) -> Tensor:
        return np.cumsum(x, axis=axis)

    def one_hot(self, index: Tensor, depth: int) -> Tensor:
        return np.eye(depth)[np.asarray(index, np.int64)]

    def softmax(self, x: Tensor) -> Tensor:
        from scipy.special import softmax

        return softmax(x, axis=1)

    def log_softmax(self, x: Tensor) -> Tensor:
        from scipy.special import log_softmax

        return log_softmax(x, axis=1)

    def flatten(self, x: Tensor) -> Tensor:
        return np.reshape(x, (x.shape[0], -1))

    def reshape_like(self, x: Tensor, like: Tensor) -> Tensor:
        return np.reshape(x, like.shape)

    def constant(self, values: Sequence[float], like: Tensor) -> Tensor:
        return np.asarray(values, like.dtype)

    def cast_like(self, x: Tensor, like: Tensor) -> Tensor:
        return np.asarray(x, like.dtype)

    def constant_of(self, x: Tensor) -> Tensor:
        return x

    def concatenate(self, x: Tensor, y: Tensor) -> Tensor:
        return np.concatenate((x, y))

    def parts(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        end, start = division(len(x), share)
        return x[:end], x[start:]

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = np.split(x, 2)
        return first, second

    def gram(self, x: Tensor, axis: int) -> Tensor:
        x = np.asarray(x, np.float64)
        return (x @ x.T if axis == 0 else x.T @ x) / len(x)

    def logdet1p(self, x: Tensor) -> Tensor:
        return np.linalg.slogdet(x + np.eye(len(x))).logabsdet


ops = NumpyOps()

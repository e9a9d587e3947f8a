"""`Ops` over TensorFlow tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


@tf.custom_gradient
def _gram(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """x x^T in float64. Its gradient is one product in the precision of x, where autodiff takes two in float64."""
    double = tf.cast(x, tf.float64)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.cast(upstream + tf.transpose(upstream), x.dtype), x)

    return tf.matmul(double, double, transpose_b=True), gradient


class TensorFlowOps:
    """`Ops` over TensorFlow tensors."""

    def abs(self, x: tf.Tensor) -> tf.Tensor:
        return tf.abs(x)

    def relu(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x)

    def log1p(self, x: tf.Tensor) -> tf.Tensor:
        return tf.math.log1p(x)

    def sqrt(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(x)

    def minimum(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.minimum(x, y)

    def maximum(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.maximum(x, y)

    def where(self, condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.where(condition, x, y)

    def sum(self, x: tf.Tensor, axis: int | None = None) -> tf.Tensor:
        return tf.reduce_sum(x, axis)

    def mean(self, x: tf.Tensor, axis: int | None = None) -> tf.Tensor:
        return tf.reduce_mean(x, axis)

    def max(self, x: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.reduce_max(x, axis)

    def largest(self, x: tf.Tensor, k: int) -> tf.Tensor:
        return tf.math.top_k(x, k).values

    def cumsum(self, x: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.cumsum(x, axis)

    def one_hot(self, index: tf.Tensor, depth: int) -> tf.Tensor:
        return tf.one_hot(tf.cast(index, tf.int32), depth)

    def softmax(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(x, axis=1)

    def log_softmax(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.log_softmax(x, axis=1)

    def flatten(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, (tf.shape(x)[0], int(np.prod(x.shape[1:]))))

    def reshape_like(self, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.reshape(x, tf.shape(like)), like.shape)

    def constant(self, values: Sequence[float], like: tf.Tensor) -> tf.Tensor:
        return tf.constant(list(values), like.dtype)

    def cast_like(self, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, like.dtype)

    def constant_of(self, x: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(x)

    def concatenate(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.concat([x, y], 0)

    def parts(self, x: tf.Tensor, share: float) -> tuple[tf.Tensor, tf.Tensor]:
        n = tf.shape(x)[0]
        place = tf.clip_by_value(tf.cast(tf.round(share * tf.cast(n, tf.float64)), n.dtype), 2, tf.maximum(n - 2, 2))
        return x[: tf.where(n < 4, n, place)], x[tf.where(n < 4, 0, place) :]

    def halves(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first, second = tf.split(x, 2)
        return first, second

    def gram(self, x: tf.Tensor, axis: int) -> tf.Tensor:
        product = _gram(x if axis == 0 else tf.transpose(x))
        return product / tf.cast(tf.shape(x)[0], product.dtype)

    def logdet1p(self, x: tf.Tensor) -> tf.Tensor:
        # The gradient inverts the matrix, which raises on NaN.
        finite = tf.reduce_all(tf.math.is_finite(x))
        matrix = tf.where(finite, x, tf.zeros_like(x)) + tf.eye(tf.shape(x)[0], dtype=x.dtype)
        return tf.where(finite, tf.linalg.slogdet(matrix).log_abs_determinant, np.nan)


ops = TensorFlowOps()

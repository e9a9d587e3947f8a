"""`Ops` over TensorFlow tensors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class TensorFlowOps:
    """`Ops` over TensorFlow tensors."""

    def abs(self, x: tf.Tensor) -> tf.Tensor:
        return tf.abs(x)

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

    def cast_like(self, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, like.dtype)


ops = TensorFlowOps()

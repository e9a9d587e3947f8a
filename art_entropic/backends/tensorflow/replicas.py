"""One training step on the devices of a `tf.distribute.MirroredStrategy`: each takes a share of the batch.

A Keras model that was built in `strategy.scope()` has a copy of its weights on every device. Each replica takes every size-th
example from its place on, as a process under torchrun does, and bounds what it has taken. Terms, gradients and the moves of
batch statistics are summed with the share of each replica, so that a loss that is a mean over examples has the gradient that
one device has for the whole batch; the optimizer then sees this one gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from art_entropic.backends.protocol import Batch, Controls

Gradients = list[tf.Tensor | None]
GradientPasses = Callable[[Batch, Controls, tf.Tensor | None], tuple[dict[str, tf.Tensor], Gradients]]


def _strategy_of(variable: Any) -> Any:
    # Only variables that a strategy distributes know of one, and their classes have no other public mark in common.
    return getattr(variable.value, "distribute_strategy", None)


def mirrored_strategy(model: Any) -> tf.distribute.MirroredStrategy | None:
    """The strategy that the weights of a Keras model belong to; None where they are on one device.

    Raises:
        ValueError: it is of another kind, or not all weights belong to it.
    """
    found = {id(strategy): strategy for strategy in map(_strategy_of, model.weights)}
    strategies = [strategy for strategy in found.values() if strategy is not None]
    for strategy in strategies:
        if not isinstance(strategy, tf.distribute.MirroredStrategy):
            raise ValueError(
                "`classifier` must hold a model on one device, or one that was built under tf.distribute.MirroredStrategy, "
                f"got {type(strategy).__name__}"
            )
    if len(found) > 1:
        raise ValueError(
            "`classifier` must hold a model whose weights were all made in one `strategy.scope()`, "
            f"got {model.name!r} with weights from several scopes, or some from outside of any"
        )
    return strategies[0] if strategies else None


def check_optimizer(optimizer: Any, strategy: tf.distribute.MirroredStrategy | None) -> None:
    """Refuse an optimizer whose state is not where the weights are.

    Raises:
        ValueError: it was made elsewhere.
    """
    # The count of its steps, which it has from the beginning.
    if _strategy_of(optimizer.variables[0]) is not strategy:
        raise ValueError(
            "the optimizer of `classifier` must be made where the weights are: in the same `strategy.scope()`, or outside of "
            f"any, got {optimizer.name!r}, which was made elsewhere"
        )


class Replicas:
    """The devices that train a model together; the one it is on where it was built without a strategy.

    Raises:
        ValueError: the strategy is of another kind, or not all weights belong to it.
        RuntimeError: asked for within a `strategy.scope()`, where Keras optimizers cannot be told to apply one gradient.
    """

    def __init__(self, model: Any) -> None:
        if tf.distribute.has_strategy():
            raise RuntimeError("train outside of `strategy.scope()`: make only the model and its optimizer inside it")
        self._strategy = mirrored_strategy(model)
        self.size = 1 if self._strategy is None else self._strategy.num_replicas_in_sync

    def run(
        self, passes: GradientPasses, batch: Batch, controls: Controls, statistics: Sequence[Any]
    ) -> tuple[dict[str, tf.Tensor], Gradients]:
        """Terms and gradients of the whole batch; the statistics end where the shares move them on average.

        Only layers that ask for it (`BatchNormalization(synchronized=True)`) normalise by the statistics of the whole batch.
        """
        if self._strategy is None:
            return passes(batch, controls, None)
        # A count goes the same way on every device, and has no mean.
        statistics = [variable for variable in statistics if variable.value.dtype.is_floating]
        before = [tf.identity(variable.value) for variable in statistics]

        def share(batch: Batch, controls: Controls) -> tuple[dict[str, tf.Tensor], Gradients, list[tf.Tensor]]:
            replica = tf.distribute.get_replica_context()
            own, weight = self._share(batch, replica.replica_id_in_sync_group)
            start = [tf.identity(variable.value) for variable in statistics]
            terms, gradients = passes(own, controls, weight)
            # The moves and not the values, whose mean would not be exact where nothing moves.
            moves = [tf.cast(weight, s.dtype) * (v.value - s) for v, s in zip(statistics, start, strict=True)]
            values = [weight * tf.cast(value, tf.float32) for value in terms.values()]
            some = [gradient for gradient in gradients if gradient is not None]
            sums = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, [*values, *some, *moves]))
            return (
                {name: next(sums) for name in terms},
                [None if gradient is None else next(sums) for gradient in gradients],
                list(sums),
            )

        local = self._strategy.experimental_local_results
        results = self._strategy.run(share, args=(batch, controls))
        # After the sum all replicas have the same.
        terms, gradients, moves = tf.nest.map_structure(lambda sums: None if sums is None else local(sums)[0], results)
        for variable, value, move in zip(statistics, before, moves, strict=True):
            variable.assign(value + move)
        return terms, gradients

    def _share(self, batch: Batch, place: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        """One replica's examples, and their share of the batch. A batch too small to share is every replica's."""
        n = tf.shape(batch.x)[0]
        small = n < 2 * self.size
        first, stride = tf.where(small, 0, place), tf.where(small, 1, self.size)
        own = Batch(*(None if part is None else tf.ensure_shape(part[first::stride], part.shape) for part in batch))
        share = tf.cast(tf.shape(own.x)[0], tf.float32) / tf.cast(n, tf.float32)
        return own, tf.where(small, 1.0 / self.size, share)

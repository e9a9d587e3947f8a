"""TensorFlow: the compiled passes of a model, in training and in inference, each traced once for batches of any length."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from art_entropic.backends.protocol import Batch, Controls
from art_entropic.backends.tensorflow.joint import Joint, box_of
from art_entropic.backends.tensorflow.network import differentiated, one_output
from art_entropic.backends.tensorflow.walk import Walk, require_graph
from art_entropic.ops import Box


def compiled(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`tf.function` for batches of any length."""

    def decorate(function: Callable[..., Any]) -> Any:
        traced = tf.function(function, input_signature=signature, autograph=False)
        # TensorFlow takes the functions of many models, each traced once, for one that is traced over and over.
        traced._omit_frequent_tracing_warning = True
        return traced

    return decorate


Compute = Callable[[Batch, Controls], dict[str, tf.Tensor]]


class TensorFlowStep:
    """A compiled `Step`, traced once for batches of any length."""

    def __init__(self, compute: Compute, nb_classes: int) -> None:
        self.trace_count = 0
        self._compute, self._nb_classes = compute, nb_classes
        self._names: tuple[str, ...] = ()
        self._made: dict[tuple[tuple[int, ...], bool], Callable[..., tf.Tensor]] = {}

    def _terms(self, shape: tuple[int, ...], weighted: bool) -> Callable[..., tf.Tensor]:
        """For examples of one shape, with or without weights: made when such a batch comes, which is once in most fits."""
        if (shape, weighted) in self._made:
            return self._made[shape, weighted]
        images, numbers = tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None,), tf.float32)
        labels, scalar = tf.TensorSpec((None, self._nb_classes), tf.float32), tf.TensorSpec((), tf.float32)
        batch = [images, labels, images, numbers, *([numbers] if weighted else [])]

        @compiled(*batch, scalar, scalar, scalar)
        def terms(*inputs: tf.Tensor) -> tf.Tensor:
            self.trace_count += 1
            values = self._compute(Batch(*inputs[: len(batch)]), Controls(*inputs[len(batch) :]))
            self._names = tuple(values)
            return tf.stack([tf.cast(value, tf.float32) for value in values.values()])

        self._made[shape, weighted] = terms
        return self._made[shape, weighted]

    def __call__(self, batch: Batch, controls: Controls) -> dict[str, float]:
        inputs = [np.asarray(part, np.float32) for part in (*batch, *controls) if part is not None]
        values = self._terms(tuple(batch.x.shape[1:]), batch.weight is not None)(*inputs)
        return dict(zip(self._names, values.numpy().tolist(), strict=True))


def _alive(reference: weakref.ref[Any]) -> Any:
    """The model behind the reference; whoever asks for a pass holds it."""
    model = reference()
    if model is None:
        raise ReferenceError("the model was deleted")
    return model


class Inference:
    """The compiled inference passes of one model, on preprocessed inputs. Holds no strong reference to the model.

    Args:
        input_shape: of one example, without unknown lengths.
    """

    def __init__(self, model: Any, input_shape: Sequence[int], nb_classes: int) -> None:
        self.made_for = (tuple(input_shape), nb_classes, _structure(model))
        self.names: tuple[str, ...] = ()
        reference = weakref.ref(model)
        images = tf.TensorSpec((None, *input_shape), tf.float32)
        labels = tf.TensorSpec((None, nb_classes), tf.float32)

        @compiled(images)
        def logits(x: tf.Tensor) -> tf.Tensor:
            return one_output(_alive(reference)(x, training=False))

        @compiled(images, labels)
        def gradient(x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                score = tf.reduce_sum(v * one_output(_alive(reference)(x, training=False)))
            return differentiated(tape, score, x)

        @compiled(images)
        def values(x: tf.Tensor) -> list[tf.Tensor]:
            return [layer.value for layer in self._walk(_alive(reference), Joint(x, None, "input"))]

        # For each norm: bounds, and the logits of the pass that carries them and of the network's own. In one graph, TensorFlow
        # computes once what both have in common, and the comparison costs what they have not.
        def bounds_of(chosen: slice) -> dict[float, Any]:
            def bounds(x: tf.Tensor, *ball: tf.Tensor) -> tuple[list[Box], tf.Tensor, tf.Tensor]:
                model, (lower, upper, *spread) = _alive(reference), ball
                layers = self._walk(model, Joint(x, Box(lower, upper), "input", spread=spread[0] if spread else None))
                return [box_of(layer) for layer in layers[chosen]], layers[-1].value, one_output(model(x, training=False))

            return {math.inf: compiled(*[images] * 3)(bounds), 2.0: compiled(*[images] * 4)(bounds)}

        self.logits, self.gradient, self.values = logits, gradient, values
        self.bounds, self.logit_bounds = bounds_of(slice(None)), bounds_of(slice(-1, None))

    def _walk(self, model: Any, x: Joint) -> list[Joint]:
        require_graph(model)
        walk = Walk(training=False)
        walk.logits(model, x)
        names, layers = zip(*walk.layers(), strict=True)
        self.names = names
        return list(layers)


# Backends come and go, and compiling takes longer than most of what they are asked. One for each shape of an example.
_inference: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Inference]] = weakref.WeakKeyDictionary()


def inference_of(model: Any, input_shape: Sequence[int], nb_classes: int) -> Inference:
    """The passes for examples of this shape, compiled once for as long as the model stays what it is."""
    kept = _inference.setdefault(model, {})
    passes = kept.get(tuple(input_shape))
    if passes is None or passes.made_for != (tuple(input_shape), nb_classes, _structure(model)):
        passes = kept[tuple(input_shape)] = Inference(model, input_shape, nb_classes)
    return passes


def forget_inference(model: Any) -> None:
    """The passes of a model that is no longer what it was."""
    _inference.pop(model, None)


def _structure(model: Any) -> tuple[Any, ...]:
    """What a user may change in a model that was compiled before: its layers, their activations, and all plain settings."""
    return tuple((id(layer), id(getattr(layer, "activation", None)), *_settings(layer)) for layer in model._flatten_layers())


def _settings(layer: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(layer).items():
        if isinstance(value, np.ndarray):
            yield name, value.tobytes()
        elif _is_plain(value):
            yield name, repr(value)


def _is_plain(value: Any) -> bool:
    """Numbers, words, and what is made of them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.number))

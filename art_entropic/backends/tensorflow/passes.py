"""TensorFlow: the compiled passes of a model, in training and in inference, each traced once for batches of any length."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from art_entropic.backends.protocol import Batch, Controls, Objective
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


class StepTerms:
    """The compiled terms of a step, traced once for batches of any length; what `compute` holds lives as long as this."""

    def __init__(self, compute: Compute, nb_classes: int) -> None:
        self.trace_count = 0
        self._compute, self._nb_classes = compute, nb_classes
        self._names: tuple[str, ...] = ()
        self._made: dict[tuple[tuple[int, ...], tuple[bool, ...]], Callable[..., tf.Tensor]] = {}

    def _terms(self, shape: tuple[int, ...], given: tuple[bool, ...]) -> Callable[..., tf.Tensor]:
        """For one shape of examples and the given parts of a batch; made when such a batch comes, once in most fits."""
        if (shape, given) in self._made:
            return self._made[shape, given]
        images, numbers = tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None,), tf.float32)
        labels, scalar = tf.TensorSpec((None, self._nb_classes), tf.float32), tf.TensorSpec((), tf.float32)
        parts = Batch(x=images, y=labels, ball_noise=images, class_noise=numbers, weight=numbers)
        batch = [part for part, is_given in zip(parts, given, strict=True) if is_given]

        @compiled(*batch, scalar, scalar, scalar)
        def terms(*inputs: tf.Tensor) -> tf.Tensor:
            self.trace_count += 1
            values = self._compute(batch_of(inputs[: len(batch)], given), Controls(*inputs[len(batch) :]))
            self._names = tuple(values)
            return tf.stack([tf.cast(value, tf.float32) for value in values.values()])

        self._made[shape, given] = terms
        return self._made[shape, given]

    def __call__(self, batch: Batch, controls: Controls) -> dict[str, float]:
        inputs = [np.asarray(part, np.float32) for part in (*batch, *controls) if part is not None]
        values = self._terms(tuple(batch.x.shape[1:]), parts_of(batch))(*inputs)
        return dict(zip(self._names, values.numpy().tolist(), strict=True))


def parts_of(batch: Batch) -> tuple[bool, ...]:
    """Which parts of a batch there are."""
    return tuple(part is not None for part in batch)


def batch_of(parts: Iterable[tf.Tensor], given: Iterable[bool]) -> Batch:
    """The batch that has these parts and no others."""
    left = iter(parts)
    return Batch(*(next(left) if is_given else None for is_given in given))


@dataclass(frozen=True)
class TensorFlowStep:
    """A compiled `Step`. It holds its model and optimizer, as the terms, which are kept for other steps, must not."""

    owners: tuple[Any, ...]
    terms: StepTerms

    @property
    def trace_count(self) -> int:
        return self.terms.trace_count

    def __call__(self, batch: Batch, controls: Controls) -> dict[str, float]:
        return self.terms(batch, controls)


def alive(reference: weakref.ref[Any]) -> Any:
    """What is behind the reference; whoever asks for a pass or a step holds it."""
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
            return one_output(alive(reference)(x, training=False))

        @compiled(images, labels)
        def gradient(x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                score = tf.reduce_sum(v * one_output(alive(reference)(x, training=False)))
            return differentiated(tape, score, x)

        @compiled(images)
        def values(x: tf.Tensor) -> list[tf.Tensor]:
            return [layer.value for layer in self._walk(alive(reference), Joint(x, None, "input"))]

        # For each norm: bounds, and the logits of the pass that carries them and of the network's own. In one graph, TensorFlow
        # computes once what both have in common, and the comparison costs what they have not.
        def bounds_of(chosen: slice) -> dict[float, Any]:
            def bounds(x: tf.Tensor, *ball: tf.Tensor) -> tuple[list[Box], tf.Tensor, tf.Tensor]:
                model, (lower, upper, *spread) = alive(reference), ball
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


def forget(model: Any) -> None:
    """The passes and steps of a model that is no longer what it was."""
    _inference.pop(model, None)
    _steps.pop(model, None)


class _Kept(NamedTuple):
    """The steps of one model and kind, and what they take for granted."""

    facts: tuple[Any, ...]
    variables: tuple[Any, ...]  # those and no others, since a compiled step has them within
    terms: dict[Objective, StepTerms]


KEPT_STEPS = 4  # of one model and kind, so that a search over hyperparameters does not fill the memory
_steps: weakref.WeakKeyDictionary[Any, dict[str, _Kept]] = weakref.WeakKeyDictionary()


def step_terms(
    model: Any, kind: str, objective: Objective, optimizer: Any, constants: Sequence[Any], make: Callable[[], StepTerms]
) -> StepTerms:
    """The terms of a step, compiled once for as long as all that they were made of stays what it is.

    Code of the user's own, in a layer or a measure, may read what no comparison sees, and the random operations of TensorFlow
    take their seed when they are traced: where there is any, nothing is kept.

    Args:
        kind: of the step.
        optimizer: None where nothing descends.
        constants: what the step takes for granted beside the model and its optimizer, as plain values.
        make: gives terms that hold neither the model nor its optimizer.
    """
    owners = [*model._flatten_layers(), *([] if optimizer is None else [optimizer])]
    if not (_is_value(objective) and all(map(_is_of_keras, owners))):
        return make()
    trained = tuple(map(id, model.trainable_variables))
    facts = (_structure(model), *constants, trained, *(tuple(_parts(owner)) for owner in owners))
    variables = (*model.variables, *([] if optimizer is None else optimizer.variables))
    steps = _steps.setdefault(model, {})
    kept = steps.get(kind)
    if kept is None or kept.facts != facts or [*map(id, kept.variables)] != [*map(id, variables)]:
        kept = steps[kind] = _Kept(facts, variables, {})
    if objective not in kept.terms:
        kept.terms[objective] = make()
        if len(kept.terms) > KEPT_STEPS:
            del kept.terms[next(iter(kept.terms))]
    return kept.terms[objective]


def _is_value(objective: Objective) -> bool:
    """Whether an objective is made of values of this package alone, so that equal ones do the same."""
    if not is_dataclass(objective):
        return False
    parts = (objective, *vars(objective).values())
    return all(type(part).__module__.partition(".")[0] in ("art_entropic", "builtins") for part in parts)


def _is_of_keras(owner: Any) -> bool:
    """Whether the code of a layer or an optimizer is Keras' own, and that of its activation, regularisers and so on."""
    functions = [value for value in vars(owner).values() if callable(value)]
    modules = {str(one.__module__).partition(".")[0] for one in (type(owner), *functions)}
    return modules <= {"keras", "tensorflow"} and not isinstance(owner, keras.layers.Lambda)


def _parts(owner: Any) -> Iterator[Any]:
    """What `_structure` leaves out: the settings of a layer's or optimizer's regularisers, schedule and so on."""
    yield getattr(owner, "compute_dtype", None)
    yield from _settings(owner)
    for name, value in vars(owner).items():
        if callable(value):
            yield name, id(value), *_settings(value)


def _structure(model: Any) -> tuple[Any, ...]:
    """What a user may change in a model that was compiled before: its layers, their activations, and all plain settings."""
    return tuple((id(layer), id(getattr(layer, "activation", None)), *_settings(layer)) for layer in model._flatten_layers())


def _settings(owner: Any) -> Iterator[tuple[str, Any]]:
    for name, value in getattr(owner, "__dict__", {}).items():
        if isinstance(value, np.ndarray):
            yield name, value.tobytes()
        elif _is_plain(value):
            yield name, repr(value)


def _is_plain(value: Any) -> bool:
    """Numbers, words, and what is made of them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.number))

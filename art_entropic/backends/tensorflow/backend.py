"""TensorFlow: ART's TensorFlowV2Classifier and KerasClassifier behind the `Backend` protocol."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from art_entropic import intervals
from art_entropic.backends.architecture import (
    NORM_EPSILON,
    NORM_MOMENTUM,
    Activation,
    Architecture,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    initial_weights,
)
from art_entropic.backends.errors import check_joint_pass
from art_entropic.backends.preprocessing import standardisation
from art_entropic.backends.protocol import (
    Activations,
    Ascent,
    AttackObjective,
    Batch,
    Controls,
    LayerActivation,
    LayerInterval,
    Objective,
    OwnLoss,
    Propagation,
)
from art_entropic.backends.tensorflow.art import before_each_step, for_art_trainers
from art_entropic.backends.tensorflow.bounds import Joint, Walk, box_of, has_graph, own_losses, require_graph, straight_relu
from art_entropic.backends.tensorflow.network import differentiated, one_output, own_loss, penalty_of, remove_softmax, total
from art_entropic.backends.tensorflow.ops import ops
from art_entropic.backends.tensorflow.precision import full_float32
from art_entropic.backends.tensorflow.replicas import Gradients, Passes, Replicas, check_optimizer, mirrored_strategy
from art_entropic.ops import Array, Box, concatenated

Standardise = Callable[[tf.Tensor], tf.Tensor]
# Of an axis whose length a model leaves open, where only the layers' names are asked for.
USUAL_LENGTH = 32


def _single(box: Box) -> Box:
    """In the precision that objectives compute in; layers may have their own."""
    return Box(*(tf.cast(end, tf.float32) for end in box))


class TensorFlowView:
    """`View` of a Keras model."""

    ops = ops

    def __init__(
        self, model: Any, standardise: Standardise, clip_values: tuple[tf.Tensor, tf.Tensor] | None, *, training: bool
    ) -> None:
        self._model = model
        self._standardise = standardise
        self._clip_values = clip_values
        self._training = training
        self._added: list[tuple[tf.Tensor, tf.Tensor]] = []  # of each pass in training: rows, and what layers add to the loss

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        logits = one_output(self._model(self._standardise(x), training=self._training))
        self._keep(x, lambda: own_losses(self._model))
        return logits

    def penalty(self) -> tf.Tensor | None:
        return penalty_of(self._model, self._added) if self._training else None

    def _keep(self, x: tf.Tensor, losses: Callable[[], list[tf.Tensor]]) -> None:
        # Replicas take turns within a pass, and a Keras layer has one list for all of them.
        alone = tf.distribute.get_replica_context().num_replicas_in_sync == 1
        if self._training and alone and (added := losses()):
            self._added.append((tf.cast(tf.shape(x)[0], tf.float32), total(added)))

    def ball(self, x: tf.Tensor, eps: tf.Tensor) -> Box:
        return intervals.ball(ops, x, eps, self._clip_values)

    def propagate(self, x: tf.Tensor, eps: tf.Tensor) -> Propagation:
        box = Box(*map(self._standardise, self.ball(x, eps)))
        walk = Walk(training=self._training)
        logits = walk.logits(self._model, Joint(self._standardise(x), box, "input"))
        self._keep(x, lambda: walk.losses)
        layers = tuple(LayerInterval(name, _single(box_of(layer))) for name, layer in walk.layers())
        return Propagation(tf.cast(logits.value, tf.float32), layers[-1].box, layers)

    def activations(self, x: tf.Tensor) -> Activations:
        require_graph(self._model)
        walk = Walk(training=self._training)
        logits = walk.logits(self._model, Joint(self._standardise(x), None, "input"))
        self._keep(x, lambda: walk.losses)
        layers = tuple(LayerActivation(name, tf.cast(layer.value, tf.float32)) for name, layer in walk.layers())
        return Activations(tf.cast(logits.value, tf.float32), layers)

    def input_gradient(self, x: tf.Tensor, direction: Callable[[tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            walk = Walk(training=False, relu=straight_relu)
            logits = tf.cast(walk.logits(self._model, Joint(self._standardise(x), None, "input")).value, tf.float32)
            weights = tf.stop_gradient(direction(tf.stop_gradient(logits)))
            score = tf.reduce_sum(weights * logits)
        return logits, differentiated(tape, score, x)


def _compiled(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`tf.function` for batches of any length."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = tf.function(function, input_signature=signature, autograph=False)
        # TensorFlow takes the functions of many models, each traced once, for one that is traced over and over.
        compiled._omit_frequent_tracing_warning = True
        return compiled

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

        @_compiled(*batch, scalar, scalar, scalar)
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


class _Inference:
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

        @_compiled(images)
        def logits(x: tf.Tensor) -> tf.Tensor:
            return one_output(_alive(reference)(x, training=False))

        @_compiled(images, labels)
        def gradient(x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                score = tf.reduce_sum(v * one_output(_alive(reference)(x, training=False)))
            return differentiated(tape, score, x)

        @_compiled(images)
        def values(x: tf.Tensor) -> list[tf.Tensor]:
            return [layer.value for layer in self._walk(_alive(reference), Joint(x, None, "input"))]

        # Bounds, and the logits of the pass that carries them and of the network's own. In one graph, TensorFlow computes once
        # what both have in common, and the comparison costs what they have not.
        def bounds_of(chosen: slice) -> Any:
            @_compiled(images, images, images)
            def bounds(x: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor) -> tuple[list[Box], tf.Tensor, tf.Tensor]:
                model = _alive(reference)
                layers = self._walk(model, Joint(x, Box(lower, upper), "input"))
                return [box_of(layer) for layer in layers[chosen]], layers[-1].value, one_output(model(x, training=False))

            return bounds

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
_inference: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], _Inference]] = weakref.WeakKeyDictionary()


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


# Names of an activation beside the one that Keras gives it.
_SAME_ACTIVATION = {"relu": (keras.activations.relu, keras.ops.relu, tf.nn.relu), "silu": (keras.activations.silu, tf.nn.silu)}


def _is_plain_relu(layer: Any) -> bool:
    return type(layer) is keras.layers.ReLU and layer.max_value is None and not layer.negative_slope and not layer.threshold


def _applies(layer: Any, activation: Activation) -> bool:
    """Whether a layer has that activation as an attribute that can be set; a recurrent layer shows that of its cell."""
    own = getattr(type(layer), "activation", None)
    if isinstance(own, property) and own.fset is None:
        return False
    function = getattr(layer, "activation", None)
    if activation == "relu" and _is_plain_relu(function):
        return True
    return any(function is same for same in _SAME_ACTIVATION[activation])


class TensorFlowBackend:
    """`Backend` of an ART TensorFlowV2Classifier or KerasClassifier."""

    framework = "tensorflow"
    weights_suffix = ".weights.h5"
    ops = ops

    def __init__(self, estimator: Any) -> None:
        model = estimator.model
        if not isinstance(model, keras.Model) or keras.backend.backend() != "tensorflow":
            raise TypeError(
                "`classifier` must hold a Keras 3 model on the tensorflow backend, "
                f"got {type(model).__name__} and the {keras.backend.backend()} backend"
            )
        self._estimator = estimator
        self.model = model
        self._input_shape = tuple(estimator.input_shape)
        self._nb_classes = int(estimator.nb_classes)
        self._mean_std = _constants(standardisation(estimator))
        self._clip_values = _constants(estimator.clip_values)
        if not model.built or not model.weights:
            with model.distribute_strategy.scope():
                model(tf.zeros((1, *self._usual_shape)), training=False)

    @property
    def estimator(self) -> Any:
        return self._estimator

    @property
    def _usual_shape(self) -> tuple[int, ...]:
        """A shape of one example, where the model leaves lengths open and no example is at hand."""
        return tuple(USUAL_LENGTH if length is None else int(length) for length in self._input_shape)

    @property
    def _compiled_by_keras(self) -> bool:
        """KerasClassifier leaves optimizer and loss to the model; TensorFlowV2Classifier has its own."""
        return any(base.__name__ == "KerasClassifier" for base in type(self._estimator).__mro__)

    @property
    def _optimizer(self) -> Any:
        optimizer = self.model.optimizer if self._compiled_by_keras else self._estimator.optimizer
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "`classifier` must have a keras.optimizers.Optimizer to be retrained, "
                f"got a {type(self._estimator).__name__} with `optimizer={optimizer!r}`"
            )
        if optimizer.loss_scale_factor is not None or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(f"the optimizer of `classifier` must not scale the loss, got {optimizer.name!r} which does")
        strategy = mirrored_strategy(self.model)
        check_optimizer(optimizer, strategy)
        if not optimizer.built:
            with (strategy or self.model.distribute_strategy).scope():
                optimizer.build(self.model.trainable_variables)
        return optimizer

    def place(self, device: str) -> None:
        _check_first(device)
        wanted = _own_name(device)
        weights = {weight.value.device.rpartition("device:")[2] for weight in self.model.weights}
        if weights - {wanted}:
            raise ValueError(
                f"`device` must be where the weights of `classifier` are ({', '.join(sorted(weights))}), got {device!r}: "
                "a Keras model stays where it was built"
            )

    def check_trainable(self) -> None:
        kind = type(self._estimator).__name__
        if self._compiled_by_keras and not self.model.compiled:
            raise ValueError(
                "`classifier` must hold a compiled model to be retrained, with model.compile(optimizer=..., loss=...), "
                f"got a {kind} of the model {self.model.name!r} that is not compiled"
            )
        if (self.model.loss if self._compiled_by_keras else self._estimator.loss_object) is None:
            raise ValueError(f"`classifier` must have a loss to be retrained, got a {kind} without one")
        if not self.model.trainable_variables:
            raise ValueError(f"`classifier` must have trainable weights, got the model {self.model.name!r} without any")
        shape = self.model.output_shape if has_graph(self.model) else (None, self._nb_classes)
        # A Sequential that was built by its first batch has that batch's size in its shape.
        if not isinstance(shape, tuple) or shape[1:] != (self._nb_classes,):
            raise ValueError(
                f"`classifier` must return one array of logits of shape (n, {self._nb_classes}), its model returns {shape}"
            )
        _ = self._optimizer

    def own_loss(self) -> OwnLoss:
        loss = self.model.loss if self._compiled_by_keras else self._estimator.loss_object
        return own_loss(loss, self.model)

    # -- passes

    def _standardise(self, x: tf.Tensor) -> tf.Tensor:
        if self._mean_std is None:
            return x
        mean, std = self._mean_std
        return (x - mean) / std

    def _view(self, *, training: bool) -> TensorFlowView:
        return TensorFlowView(self.model, self._standardise, self._clip_values, training=training)

    def _passes(self, shape: Sequence[int]) -> _Inference:
        """The passes for examples of this shape."""
        kept = _inference.setdefault(self.model, {})
        passes = kept.get(tuple(shape))
        if passes is None or passes.made_for != (tuple(shape), self._nb_classes, _structure(self.model)):
            passes = kept[tuple(shape)] = _Inference(self.model, shape, self._nb_classes)
        return passes

    def _chunks(self, x: Array, batch_size: int) -> Iterator[tf.Tensor]:
        for start in range(0, len(x), batch_size):
            yield tf.convert_to_tensor(np.asarray(x[start : start + batch_size], np.float32))

    @full_float32
    def logits(self, x: Array, batch_size: int = 256) -> Array:
        passes = self._passes(x.shape[1:])
        return np.concatenate([passes.logits(self._standardise(c)).numpy() for c in self._chunks(x, batch_size)])

    @full_float32
    def predict(self, x: Array) -> Array:
        with _kept_generators(self.model):
            predictions: Array = self._estimator.predict(x, batch_size=len(x))
        return predictions

    @full_float32
    def both_logits(self, x: Array, eps: float, *, training: bool) -> tuple[Array, Array]:
        view = self._view(training=training)
        points = tf.constant(x, tf.float32)

        def logits(compute: Callable[[], tf.Tensor]) -> Array:
            with _unchanged(self.model, seed=0):
                array: Array = compute().numpy()
            return array

        joint = logits(lambda: view.propagate(points, tf.constant(eps, tf.float32)).logits)
        return logits(lambda: view.logits(points)), joint

    @full_float32
    def layer_names(self) -> tuple[str, ...]:
        passes = self._passes(self._usual_shape)
        if not passes.names:
            passes.values(tf.zeros((1, *self._usual_shape)))
        return passes.names

    def curved_operation(self, x: Array) -> str | None:
        points, walk = self._standardise(tf.constant(x, tf.float32)), Walk(training=False)
        walk.logits(self.model, Joint(points, Box(points, points), "input"))
        return walk.curved

    @full_float32
    def activations(self, x: Array, batch_size: int = 256) -> dict[str, Array]:
        passes = self._passes(x.shape[1:])
        parts = [passes.values(self._standardise(chunk)) for chunk in self._chunks(x, batch_size)]
        values = (np.concatenate([part.numpy() for part in layer]) for layer in zip(*parts, strict=True))
        return dict(zip(passes.names, values, strict=True))

    @full_float32
    def intervals(self, x: Array, eps: float, batch_size: int = 256) -> dict[str, Box]:
        passes = self._passes(x.shape[1:])
        layers = zip(*self._bounds(passes, passes.bounds, x, eps, batch_size), strict=True)
        return dict(zip(passes.names, map(concatenated, layers), strict=True))

    @full_float32
    def logit_bounds(self, x: Array, eps: float, batch_size: int = 256) -> Box:
        passes = self._passes(x.shape[1:])
        return concatenated([box for (box,) in self._bounds(passes, passes.logit_bounds, x, eps, batch_size)])

    def _bounds(self, passes: _Inference, ask: Any, x: Array, eps: float, batch_size: int) -> Iterator[list[Box]]:
        """Of each batch the bounds of the layers that `ask` returns."""
        for chunk in self._chunks(x, batch_size):
            box = intervals.ball(ops, chunk, tf.constant(eps, tf.float32), self._clip_values)
            layers, joint, plain = ask(*map(self._standardise, (chunk, *box)))
            check_joint_pass(plain.numpy(), joint.numpy(), lambda: passes.names[-1])
            yield [Box(lower.numpy(), upper.numpy()) for lower, upper in layers]

    @full_float32
    def input_gradient(self, x: Array, v: Array, batch_size: int = 256) -> Array:
        passes = self._passes(x.shape[1:])
        parts = []
        for chunk, weights in zip(self._chunks(x, batch_size), self._chunks(v, batch_size), strict=True):
            gradient = passes.gradient(self._standardise(chunk), weights)
            parts.append((gradient if self._mean_std is None else gradient / self._mean_std[1]).numpy())
        return np.concatenate(parts)

    def ascent(self, objective: AttackObjective, nb_classes: int) -> Callable[[Array, Array, Array], Ascent]:
        view = self._view(training=False)
        labels = tf.TensorSpec((None, nb_classes), tf.float32)

        def passes(x: tf.Tensor, y: tf.Tensor, more: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                logits, values = objective(view, x, y, more)
                total = tf.reduce_sum(values)
            return logits, values, tape.gradient(total, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        @functools.cache
        def compiled(shape: tuple[int, ...]) -> Callable[..., Any]:
            images = tf.TensorSpec((None, *shape), tf.float32)
            result: Callable[..., Any] = _compiled(images, labels, tf.TensorSpec((None, None), tf.float32))(passes)
            return result

        @full_float32
        def ask(x: Array, y: Array, more: Array) -> Ascent:
            inputs = (np.asarray(part, np.float32) for part in (x, y, more))
            return Ascent(*(t.numpy() for t in compiled(x.shape[1:])(*inputs)))

        return ask

    @property
    def is_accelerated(self) -> bool:
        return bool(tf.config.list_logical_devices("GPU"))

    def replace_activations(self, there: Activation, then: Activation) -> tuple[str, ...]:
        layers = self.model._flatten_layers(include_self=False)
        found = [layer for layer in layers if _applies(layer, there)]
        within = {id(layer.activation) for layer in found}
        fixed = [layer.name for layer in layers if there == "relu" and _is_plain_relu(layer) and id(layer) not in within]
        if fixed:
            raise ValueError(
                f"`classifier` must apply {there} by keras.layers.Activation or by the argument `activation` of a layer "
                f"to have it replaced, got a layer of its own: {', '.join(fixed)}"
            )
        for layer in found:
            layer.activation = keras.activations.get(then)
        self._forget_compiled()
        return tuple(layer.name for layer in found)

    def _forget_compiled(self) -> None:
        """What we, Keras and ART compiled of the model as it was."""
        _inference.pop(self.model, None)
        self.model.train_function = self.model.test_function = self.model.predict_function = None
        if hasattr(self._estimator, "_forward_pass"):
            self._estimator._forward_pass = tf.function(self._estimator._forward_pass.python_function, reduce_retracing=True)

    def remove_softmax(self) -> str:
        old = self.model
        name, self.model = remove_softmax(self._estimator, old, compiled=self._compiled_by_keras, shape=self._usual_shape)
        _inference.pop(old, None)
        self._forget_compiled()
        return name

    # -- training

    @contextlib.contextmanager
    def training(self, seed: int | None) -> Iterator[None]:
        if seed is None:
            yield
            return
        with _seeded(self.model, seed):
            yield

    def _step(self, compute: Compute) -> TensorFlowStep:
        return TensorFlowStep(compute, self._nb_classes)

    def hold(self, x: Array) -> Any:
        return x

    def training_step(self, objective: Objective) -> TensorFlowStep:
        """See `Backend`. On every device of the model's MirroredStrategy.

        Raises:
            ValueError: the model cannot train under its strategy.
            RuntimeError: called within a `strategy.scope()`.
        """
        optimizer, variables = self._optimizer, self.model.trainable_variables
        statistics = [variable for variable in self.model.non_trainable_weights]
        replicas = Replicas(self.model)
        passes = self._gradients_of(objective)

        def compute(batch: Batch, controls: Controls) -> dict[str, tf.Tensor]:
            before = [tf.identity(variable.value) for variable in statistics]
            terms, gradients = replicas.run(passes, batch, controls, statistics)
            updates = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
            norm = tf.linalg.global_norm([gradient for gradient, _ in updates])

            def descend() -> tf.Tensor:
                optimizer.apply_gradients(updates)
                return tf.constant(True)

            def undo() -> tf.Tensor:
                for variable, value in zip(statistics, before, strict=True):
                    variable.assign(value)
                return tf.constant(False)

            tf.cond(tf.math.is_finite(terms["loss"]) & tf.math.is_finite(norm), descend, undo)
            return {**terms, "gradient_norm": norm}

        return self._step(compute)

    def _gradients_of(self, objective: Objective) -> Passes:
        variables = self.model.trainable_variables

        def passes(batch: Batch, controls: Controls, weight: tf.Tensor | None) -> tuple[dict[str, tf.Tensor], Gradients]:
            weights = [variable.value for variable in variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                # A view of its own for each pass of each device: it remembers what the layers add to the loss.
                terms = dict(objective(self._view(training=True), batch, controls))
                loss = terms["loss"] if weight is None else weight * terms["loss"]
            gradients = tape.gradient(loss, weights)
            if all(gradient is None for gradient in gradients):
                raise ValueError("the loss of `objective` must depend on the weights, got one without a gradient")
            return terms, gradients

        return passes

    def dry_step(self, objective: Objective, batch: Batch, controls: Controls) -> dict[str, float]:
        """See `Backend`. Operation by operation: compiling it would take longer than running it."""
        replicas, statistics = Replicas(self.model), list(self.model.non_trainable_weights)
        parts = [tf.constant(np.asarray(part, np.float32)) for part in batch if part is not None]
        scalars = Controls(*(tf.constant(value, tf.float32) for value in controls))

        def step(*parts: tf.Tensor) -> dict[str, tf.Tensor]:
            terms, gradients = replicas.run(self._gradients_of(objective), Batch(*parts), scalars, statistics)
            norm = tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])
            return {name: tf.cast(value, tf.float32) for name, value in {**terms, "gradient_norm": norm}.items()}

        with _unchanged(self.model, seed=0):
            # On several devices only compiled: a strategy runs no operation by itself.
            specs = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in parts]
            values = (_compiled(*specs)(step) if replicas.size > 1 else step)(*parts)
            return {name: float(value) for name, value in values.items()}

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError))

    def measuring_step(self, objective: Objective) -> TensorFlowStep:
        view = self._view(training=False)
        return self._step(lambda batch, controls: dict(objective(view, batch, controls)))

    # -- state

    def state(self) -> dict[str, Array]:
        return _arrays(self._weights())

    def load_state(self, state: Mapping[str, Array]) -> None:
        _assign(self._weights(), state)

    def _weights(self) -> dict[str, Any]:
        # The automatic layer names in a path count all models of the process; order and the last name do not.
        return {f"{index:04d}/{variable.name}": variable for index, variable in enumerate(self.model.weights)}

    def optimizer_state(self) -> dict[str, Array]:
        return _arrays(self._optimizer_variables())

    def load_optimizer_state(self, state: Mapping[str, Array]) -> None:
        _assign(self._optimizer_variables(), state)

    def _optimizer_variables(self) -> dict[str, Any]:
        slots = {f"optimizer/{index:04d}": variable for index, variable in enumerate(self._optimizer.variables)}
        return slots | {f"generator/{index:04d}": state for index, state in enumerate(_generators(self.model))}

    @property
    def rate_is_settable(self) -> bool:
        return isinstance(self._optimizer.learning_rate, keras.Variable)

    @property
    def learning_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        optimizer = self._optimizer
        if not self.rate_is_settable:
            raise ValueError(
                "the optimizer of `classifier` must have a number as its learning rate for it to be set, "
                f"got a schedule of its own (set to {value!r})"
            )
        optimizer.learning_rate = value

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return (self.learning_rate,)

    @learning_rates.setter
    def learning_rates(self, values: tuple[float, ...]) -> None:
        (self.learning_rate,) = values

    def check_scheduler(self, scheduler: Any, *, validates: bool) -> None:
        if scheduler is not None and not callable(scheduler):
            raise TypeError(f"`scheduler` must be a callable epoch -> learning rate, got {type(scheduler).__name__}")

    # Keras has no scheduler object that is stepped from outside, and `check_scheduler` lets none pass.

    def step_scheduler(self, scheduler: Any, loss: float | None) -> None:
        raise TypeError(f"`scheduler` must be a callable epoch -> learning rate, got {type(scheduler).__name__}")

    def scheduler_state(self, scheduler: Any) -> dict[str, Any]:
        raise TypeError(f"`scheduler` must be a callable epoch -> learning rate, got {type(scheduler).__name__}")

    def load_scheduler_state(self, scheduler: Any, state: Mapping[str, Any]) -> None:
        raise TypeError(f"`scheduler` must be a callable epoch -> learning rate, got {type(scheduler).__name__}")

    def save_weights(self, path: Path) -> None:
        self.model.save_weights(str(path), overwrite=True)

    def load_weights(self, path: Path) -> None:
        self.model.load_weights(str(path))


def _constants(pair: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
    if pair is None:
        return None
    one, two = (tf.constant(np.asarray(value, np.float32)) for value in pair)
    return one, two


def _arrays(variables: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def _assign(variables: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    wish = {name: tuple(variable.shape) for name, variable in variables.items()}
    got = {name: tuple(array.shape) for name, array in arrays.items()}
    if wish != got:
        differing = sorted({name for name, _ in wish.items() ^ got.items()})
        raise ValueError(f"`state` must fit this network and optimizer, got other names or shapes for {differing}")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _generators(model: Any) -> list[Any]:
    """States of everything random that Keras runs for the model: one per random layer, and the one they share."""
    from keras.src.random.seed_generator import global_seed_generator  # the public API can neither read nor set it

    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in known] + [global_seed_generator().state]


@contextlib.contextmanager
def _kept_generators(model: Any) -> Iterator[None]:
    """Everything random that Keras runs for the model is afterwards where it was."""
    generators = _generators(model)
    before = [generator.numpy() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.assign(state)


@contextlib.contextmanager
def _unchanged(model: Any, seed: int) -> Iterator[None]:
    """Inside everything random starts from a seed. On leaving, weights, statistics and generators are as they were."""
    before = [weight.numpy() for weight in model.weights]
    with _seeded(model, seed):
        try:
            yield
        finally:
            for weight, value in zip(model.weights, before, strict=True):
                weight.assign(value)


@contextlib.contextmanager
def _seeded(model: Any, seed: int) -> Iterator[None]:
    """Everything random of TensorFlow, of Keras and of the model's layers starts from a seed inside; as before after."""
    rng = np.random.default_rng(seed)
    with _global_seed(seed), _kept_generators(model):
        for generator in _generators(model):
            generator.assign(rng.integers(0, 2**31, size=2).astype(generator.dtype))
        yield


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """TensorFlow's own seed inside; as before after."""
    from tensorflow.python.eager import context as eager  # the public API can set the global seed, but not read it

    context = eager.context()
    before, generator = context._seed, vars(context).get("_rng")
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        tf.random.set_seed(before)
        if generator is not None:
            context._rng = generator


def estimator_backend(estimator: Any) -> TensorFlowBackend:
    """The backend of an ART TensorFlowV2Classifier or KerasClassifier."""
    return TensorFlowBackend(estimator)


@contextlib.contextmanager
def untouched(estimator: Any, seed: int) -> Iterator[None]:
    """The model leaves as it came, and so do the generators of TensorFlow and Keras, which are seeded inside.

    A call in inference mode changes no other state of a Keras model. A layer that draws by ``tf.random`` itself keeps its own
    count inside compiled functions, which nobody can set. Inside, float32 is computed in full.
    """
    with full_float32, _seeded(estimator.model, seed):
        yield


def accelerators() -> tuple[str, ...]:
    """Names of the GPUs that TensorFlow sees."""
    return tuple(f"cuda:{index}" for index in range(len(tf.config.list_logical_devices("GPU"))))


def device_title(device: str | None) -> str:
    """What a record says of a device that `resolve_device` has named; None is the one that TensorFlow takes."""
    device = next(iter(accelerators()), "cpu") if device is None else device
    if device == "cpu":
        return device
    visible, index = tf.config.get_visible_devices("GPU"), int(device.partition(":")[2])
    if index >= len(visible):  # one GPU that was split into logical ones
        return device
    return f"{device} ({tf.config.experimental.get_device_details(visible[index]).get('device_name', 'GPU')})"


def _check_first(device: str) -> None:
    """Refuse a device that is not the one TensorFlow computes on: weights would be there, and the work elsewhere."""
    first = next(iter(accelerators()), "cpu")
    if device != first:
        raise ValueError(
            f"`device` must be {first!r} on TensorFlow, which computes on the first device that it sees, got {device!r}: "
            "choose with the environment variable CUDA_VISIBLE_DEVICES (empty for the processor) before TensorFlow is imported"
        )


def _own_name(device: str) -> str:
    """TensorFlow's name of "cpu" or "cuda:i"."""
    return "CPU:0" if device == "cpu" else device.replace("cuda", "GPU")


def build_classifier(
    architecture: Architecture,
    *,
    input_shape: tuple[int, int, int],
    nb_classes: int,
    clip_values: tuple[float, float],
    learning_rate: float,
    seed: int,
    device: str | None = None,
) -> Any:
    """An ART TensorFlowV2Classifier (NHWC, Adam, cross-entropy) of a network described as data.

    Args:
        input_shape: (height, width, channels).
        seed: of the initial weights, which are the same numbers in every framework.
        device: "cpu" or "cuda:i", which must be TensorFlow's first; None takes that one.
    Raises:
        ValueError: TensorFlow computes elsewhere.
    """
    from art.estimators.classification import TensorFlowV2Classifier

    if device is not None:
        _check_first(device)
    return TensorFlowV2Classifier(
        model=_network(architecture, input_shape, initial_weights(architecture, input_shape, seed)),
        # PyTorch's epsilon; ART turns one-hot labels into the indices that this loss wants.
        optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-8),
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_shape=input_shape,
        nb_classes=nb_classes,
        clip_values=clip_values,
        channels_first=False,
    )


def _network(architecture: Architecture, input_shape: tuple[int, int, int], weights: list[tuple[Array, Array]]) -> Any:
    layers: list[Any] = []
    height, width, _ = input_shape
    for index, layer in enumerate(architecture, start=1):
        match layer:
            case Conv():
                same = all(_same_padding(layer, length) for length in (height, width))
                if layer.padding and not same:
                    layers.append(keras.layers.ZeroPadding2D(layer.padding, name=f"padding{index}"))
                layers.append(
                    keras.layers.Conv2D(
                        layer.filters,
                        layer.kernel,
                        layer.stride,
                        padding="same" if same else "valid",
                        activation=None if layer.batch_norm else layer.activation,
                        name=f"conv{index}",
                    )
                )
                if layer.batch_norm:
                    norm = keras.layers.BatchNormalization(momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=f"norm{index}")
                    layers += [norm, keras.layers.Activation(layer.activation, name=f"activation{index}")]
                height = (height + 2 * layer.padding - layer.kernel) // layer.stride + 1
                width = (width + 2 * layer.padding - layer.kernel) // layer.stride + 1
            case MaxPool():
                layers.append(keras.layers.MaxPooling2D(layer.size, name=f"pool{index}"))
                height, width = height // layer.size, width // layer.size
            case Flatten():
                layers.append(keras.layers.Flatten(name=f"flatten{index}"))
            case Dense():
                name = "logits" if index == len(architecture) else f"dense{index}"
                layers.append(keras.layers.Dense(layer.units, activation=layer.activation, name=name))
    model = keras.Sequential([keras.Input(input_shape), *layers], name="network")
    weighted = [layer for layer in model.layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
    for layer, arrays in zip(weighted, weights, strict=True):
        layer.set_weights(list(arrays))
    return model


def _same_padding(layer: Conv, length: int) -> bool:
    """Whether TensorFlow's "same" pads this length as described: by the same amount on both sides."""
    covered = (-(-length // layer.stride) - 1) * layer.stride + layer.kernel
    return layer.padding > 0 and covered - length == 2 * layer.padding


__all__ = [
    "TensorFlowBackend",
    "TensorFlowView",
    "accelerators",
    "before_each_step",
    "build_classifier",
    "device_title",
    "estimator_backend",
    "for_art_trainers",
    "untouched",
]

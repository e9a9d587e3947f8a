"""TensorFlow: ART's TensorFlowV2Classifier and KerasClassifier behind the `Backend` protocol."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from art_entropic import intervals
from art_entropic.backends.architecture import (
    Activation,
)
from art_entropic.backends.errors import check_joint_pass
from art_entropic.backends.labels import Measured, labels
from art_entropic.backends.preprocessing import standardisation
from art_entropic.backends.protocol import (
    Activations,
    Ascent,
    AttackObjective,
    Batch,
    Controls,
    LayerActivation,
    LayerInterval,
    LinearBound,
    Objective,
    OwnLoss,
    Propagation,
    Relaxation,
)
from art_entropic.backends.tensorflow.devices import check_first, own_name
from art_entropic.backends.tensorflow.generators import generators, kept_generators, seeded, unchanged
from art_entropic.backends.tensorflow.joint import Joint, box_of
from art_entropic.backends.tensorflow.network import (
    batch_norms,
    differentiated,
    named_weights,
    one_output,
    own_loss,
    penalty_of,
    remove_softmax,
    total,
)
from art_entropic.backends.tensorflow.ops import ops
from art_entropic.backends.tensorflow.passes import (
    Compute,
    Inference,
    StepTerms,
    TensorFlowStep,
    alive,
    batch_of,
    compiled,
    forget,
    inference_of,
    parts_of,
    step_terms,
)
from art_entropic.backends.tensorflow.precision import full_float32
from art_entropic.backends.tensorflow.relaxing import CertifyingWalk, RelaxingWalk, TensorFlowRelaxed
from art_entropic.backends.tensorflow.replicas import GradientPasses, Gradients, Replicas, check_optimizer, mirrored_strategy
from art_entropic.backends.tensorflow.walk import Walk, has_graph, own_losses, require_graph, straight_relu
from art_entropic.linear_bounds import Ball
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
        self,
        model: Any,
        standardise: Standardise,
        spread: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        clip_values: tuple[tf.Tensor, tf.Tensor] | None,
        *,
        training: bool,
    ) -> None:
        self._model = model
        self._standardise, self._spread = standardise, spread
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

    def propagate(self, x: tf.Tensor, eps: tf.Tensor, norm: float = math.inf) -> Propagation:
        walk = Walk(training=self._training)
        return self._propagated(walk, self._bound_logits(x, eps, walk, norm, x))

    def relaxed(self, x: tf.Tensor, eps: tf.Tensor, norm: float = math.inf) -> tuple[Propagation, LinearBound]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            start = tf.identity(x)
            tape.watch(start)
            walk = RelaxingWalk(tape, start, training=self._training)
            logits = self._bound_logits(start, eps, walk, norm, x)
            z = tf.cast(logits.value, tf.float32)
        return self._propagated(walk, logits), functools.partial(walk.bound, z)

    def _bound_logits(self, x: tf.Tensor, eps: tf.Tensor, walk: Walk, norm: float, around: tf.Tensor) -> Joint:
        """The joint pass of x and of the ball around the same points."""
        box = Box(*map(self._standardise, self.ball(around, eps)))
        spread = None if math.isinf(norm) else self._spread(around, eps)
        logits = walk.logits(self._model, Joint(self._standardise(x), box, "input", spread=spread))
        self._keep(x, lambda: walk.losses)
        return logits

    def _propagated(self, walk: Walk, logits: Joint) -> Propagation:
        layers = tuple(LayerInterval(name, _single(box_of(layer))) for name, layer in walk.layers())
        return Propagation(tf.cast(logits.value, tf.float32), layers[-1].box, layers)

    def activations(self, x: tf.Tensor) -> Activations:
        require_graph(self._model)
        walk = Walk(training=self._training)
        logits = walk.logits(self._model, Joint(self._standardise(x), None, "input"))
        self._keep(x, lambda: walk.losses)
        layers = tuple(LayerActivation(name, tf.cast(layer.value, tf.float32)) for name, layer in walk.layers())
        return Activations(tf.cast(logits.value, tf.float32), layers)

    def linearised(
        self, x: tf.Tensor, point: tf.Tensor, direction: Callable[[tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        norms = batch_norms(self._model) if self._training else []
        if not norms:
            return self.logits(x), *self.input_gradient(point, direction)
        walk = Walk(training=True)
        logits = one_output(walk.logits(self._model, Joint(self._standardise(x), None, "input")).value)
        self._keep(x, lambda: walk.losses)
        unseen = [layer.name for layer in norms if not walk.has_statistics(layer)]
        if unseen:
            warnings.warn(
                f"`classifier` has batch norm inside custom code that cannot be inspected ({', '.join(unseen)}): the "
                "information is measured with its moving statistics, which lag behind the network in training",
                stacklevel=2,
            )
        return logits, *self._gradient(point, direction, walk)

    def input_gradient(self, x: tf.Tensor, direction: Callable[[tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return self._gradient(x, direction)

    def _gradient(
        self, x: tf.Tensor, direction: Callable[[tf.Tensor], tf.Tensor], like: Walk | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            walk = Walk(training=False, relu=straight_relu, like=like)
            logits = tf.cast(walk.logits(self._model, Joint(self._standardise(x), None, "input")).value, tf.float32)
            weights = tf.stop_gradient(direction(tf.stop_gradient(logits)))
            score = tf.reduce_sum(weights * logits)
        return logits, differentiated(tape, score, x)


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
        self._input_shape = tuple(estimator.input_shape)
        self._nb_classes = int(estimator.nb_classes)
        self._mean_std = _constants(standardisation(estimator))
        self._standardise: Standardise = functools.partial(_standardised, mean_std=self._mean_std)
        self._spread = functools.partial(_spread, mean_std=self._mean_std)
        self._clip_values = _constants(estimator.clip_values)
        if not model.built or not model.weights:
            with model.distribute_strategy.scope():
                model(tf.zeros((1, *self._usual_shape)), training=False)

    @property
    def estimator(self) -> Any:
        return self._estimator

    @property
    def model(self) -> Any:
        """That of the estimator by now: `to_logits` may have given it another one."""
        return self._estimator.model

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
            raise ValueError(f"the optimizer of `classifier` must not scale the loss, got {optimizer.name!r}, which does")
        strategy = mirrored_strategy(self.model)
        check_optimizer(optimizer, strategy)
        if not optimizer.built:
            with (strategy or self.model.distribute_strategy).scope():
                optimizer.build(self.model.trainable_variables)
        return optimizer

    def place(self, device: str) -> None:
        check_first(device)
        wanted = own_name(device)
        weights = {weight.value.device.rpartition("device:")[2] for weight in self.model.weights}
        if weights - {wanted}:
            raise ValueError(
                f"`device` must be where the weights of `classifier` are ({', '.join(sorted(weights))}), got {device!r}: "
                "a Keras model cannot be moved after it was built"
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
        own_step = None if self._compiled_by_keras else self._estimator.train_step
        return own_loss(loss, self.model, has_own_step=own_step is not None)

    # -- passes

    def _view(self, *, training: bool) -> TensorFlowView:
        return self._new_view(training=training)()

    def _new_view(self, *, training: bool) -> Callable[[], TensorFlowView]:
        """Makes views, and does not hold the model."""
        reference, standardise, spread = weakref.ref(self.model), self._standardise, self._spread
        clip_values = self._clip_values
        return lambda: TensorFlowView(alive(reference), standardise, spread, clip_values, training=training)

    def _passes(self, shape: Sequence[int]) -> Inference:
        """The passes for examples of this shape."""
        return inference_of(self.model, shape, self._nb_classes)

    def _chunks(self, x: Array, batch_size: int) -> Iterator[tf.Tensor]:
        for start in range(0, len(x), batch_size):
            yield tf.convert_to_tensor(np.asarray(x[start : start + batch_size], np.float32))

    @full_float32
    def logits(self, x: Array, batch_size: int = 256) -> Array:
        passes = self._passes(x.shape[1:])
        return np.concatenate([passes.logits(self._standardise(c)).numpy() for c in self._chunks(x, batch_size)])

    @full_float32
    def predict(self, x: Array) -> Array:
        with kept_generators(self.model):
            predictions: Array = self._estimator.predict(x, batch_size=len(x))
        return predictions

    @full_float32
    def both_logits(self, x: Array, eps: float, *, training: bool, norm: float = math.inf) -> tuple[Array, Array]:
        view = self._view(training=training)
        points = tf.constant(x, tf.float32)

        def logits(compute: Callable[[], tf.Tensor]) -> Array:
            with unchanged(self.model, seed=0):
                array: Array = compute().numpy()
            return array

        joint = logits(lambda: view.propagate(points, tf.constant(eps, tf.float32), norm).logits)
        return logits(lambda: view.logits(points)), joint

    @full_float32
    def layer_names(self) -> tuple[str, ...]:
        passes = self._passes(self._usual_shape)
        if not passes.names:
            passes.values(tf.zeros((1, *self._usual_shape)))
        return passes.names

    def layer_labels(self, names: Sequence[str]) -> dict[str, str]:
        layers = {layer.name: layer for layer in self.model._flatten_layers()}
        return labels([_measured(name, layers.get(name.partition("#")[0])) for name in names])

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
    def intervals(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> dict[str, Box]:
        passes = self._passes(x.shape[1:])
        layers = zip(*self._bounds(passes, passes.bounds, x, eps, batch_size, norm), strict=True)
        return dict(zip(passes.names, map(concatenated, layers), strict=True))

    @full_float32
    def logit_bounds(self, x: Array, eps: float, batch_size: int = 256, norm: float = math.inf) -> Box:
        passes = self._passes(x.shape[1:])
        return concatenated([box for (box,) in self._bounds(passes, passes.logit_bounds, x, eps, batch_size, norm)])

    @full_float32
    def relaxed(self, x: Array, eps: float, norm: float, relaxation: Relaxation, copies: int = 1) -> TensorFlowRelaxed:
        ball = Ball.around(x, eps, norm, self._estimator.clip_values)
        points, around = (tf.constant(x, tf.float32) for _ in range(2))
        radius = tf.constant(eps, tf.float32)
        box = Box(*map(self._standardise, intervals.ball(ops, around, radius, self._clip_values)))
        spread = None if math.isinf(norm) else self._spread(around, radius)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(points)
            walk = CertifyingWalk(tape, points, relaxation, ball, copies)
            logits = walk.logits(self.model, Joint(self._standardise(points), box, "input", spread=spread))
        check_joint_pass(self.logits(x), logits.value.numpy(), lambda: logits.source)
        return TensorFlowRelaxed(walk, logits)

    def _bounds(
        self, passes: Inference, asks: Mapping[float, Any], x: Array, eps: float, batch_size: int, norm: float
    ) -> Iterator[list[Box]]:
        """Of each batch the bounds of the layers that the pass of that norm in `asks` returns."""
        radius = tf.constant(eps, tf.float32)
        for chunk in self._chunks(x, batch_size):
            box = intervals.ball(ops, chunk, radius, self._clip_values)
            spread = [] if math.isinf(norm) else [self._spread(chunk, radius)]
            layers, joint, plain = asks[norm](*map(self._standardise, (chunk, *box)), *spread)
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
        def passes_for(shape: tuple[int, ...]) -> Callable[..., Any]:
            images = tf.TensorSpec((None, *shape), tf.float32)
            result: Callable[..., Any] = compiled(images, labels, tf.TensorSpec((None, None), tf.float32))(passes)
            return result

        @full_float32
        def ask(x: Array, y: Array, more: Array) -> Ascent:
            inputs = (np.asarray(part, np.float32) for part in (x, y, more))
            return Ascent(*(t.numpy() for t in passes_for(x.shape[1:])(*inputs)))

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
                f"`classifier` must apply {there} by keras.layers.Activation or by the argument `activation` of a layer, "
                f"where it can be replaced, got layers of another kind: {', '.join(fixed)}"
            )
        for layer in found:
            layer.activation = keras.activations.get(then)
        self._forget_compiled()
        return tuple(layer.name for layer in found)

    def _forget_compiled(self) -> None:
        """What we, Keras and ART compiled of the model as it was."""
        forget(self.model)
        self.model.train_function = self.model.test_function = self.model.predict_function = None
        if hasattr(self._estimator, "_forward_pass"):
            self._estimator._forward_pass = tf.function(self._estimator._forward_pass.python_function, reduce_retracing=True)

    def remove_softmax(self) -> str:
        old = self.model
        name = remove_softmax(self._estimator, old, compiled=self._compiled_by_keras, shape=self._usual_shape)
        forget(old)
        self._forget_compiled()
        return name

    # -- training

    @contextlib.contextmanager
    def training(self, seed: int | None) -> Iterator[None]:
        if seed is None:
            yield
            return
        with seeded(self.model, seed):
            yield

    def _step(self, kind: str, objective: Objective, optimizer: Any, make: Callable[[], Compute]) -> TensorFlowStep:
        constants = [self._nb_classes, *map(_bytes, (self._mean_std, self._clip_values))]
        terms = step_terms(self.model, kind, objective, optimizer, constants, lambda: StepTerms(make(), self._nb_classes))
        return TensorFlowStep((self.model, optimizer), terms)

    def kept_generators(self) -> contextlib.AbstractContextManager[None]:
        return kept_generators(self.model)

    def hold(self, x: Array) -> Any:
        return x

    def training_step(self, objective: Objective) -> TensorFlowStep:
        """See `Backend`. On every device of the model's MirroredStrategy.

        Raises:
            ValueError: the model cannot train under its strategy.
            RuntimeError: called within a `strategy.scope()`.
        """
        replicas = Replicas(self.model)
        return self._step("training", objective, self._optimizer, lambda: self._descent(objective, replicas))

    def _descent(self, objective: Objective, replicas: Replicas) -> Compute:
        """One step down. It holds neither the model nor its optimizer, which live as long as a step is in use."""
        reference, variables = weakref.ref(self._optimizer), self.model.trainable_variables
        statistics = list(self.model.non_trainable_weights)
        passes = self._gradients_of(objective)

        def compute(batch: Batch, controls: Controls) -> dict[str, tf.Tensor]:
            before = [tf.identity(variable.value) for variable in statistics]
            terms, gradients = replicas.run(passes, batch, controls, statistics)
            updates = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
            norm = tf.linalg.global_norm([gradient for gradient, _ in updates])

            def descend() -> tf.Tensor:
                alive(reference).apply_gradients(updates)
                return tf.constant(True)

            def undo() -> tf.Tensor:
                for variable, value in zip(statistics, before, strict=True):
                    variable.assign(value)
                return tf.constant(False)

            tf.cond(tf.math.is_finite(terms["loss"]) & tf.math.is_finite(norm), descend, undo)
            return {**terms, "gradient_norm": norm}

        return compute

    def _gradients_of(self, objective: Objective) -> GradientPasses:
        variables, new_view = self.model.trainable_variables, self._new_view(training=True)

        def passes(batch: Batch, controls: Controls, weight: tf.Tensor | None) -> tuple[dict[str, tf.Tensor], Gradients]:
            weights = [variable.value for variable in variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                # A view of its own for each pass of each device: it remembers what the layers add to the loss.
                terms = dict(objective(new_view(), batch, controls))
                loss = terms["loss"] if weight is None else weight * terms["loss"]
            gradients = tape.gradient(loss, weights)
            if all(gradient is None for gradient in gradients):
                raise ValueError("the loss of `objective` must depend on the weights, got a loss without a gradient")
            return terms, gradients

        return passes

    def dry_step(self, objective: Objective, batch: Batch, controls: Controls) -> dict[str, float]:
        """See `Backend`. Operation by operation: compiling it would take longer than running it."""
        replicas, statistics = Replicas(self.model), list(self.model.non_trainable_weights)
        parts = [tf.constant(np.asarray(part, np.float32)) for part in batch if part is not None]
        scalars = Controls(*(tf.constant(value, tf.float32) for value in controls))

        def step(*parts: tf.Tensor) -> dict[str, tf.Tensor]:
            given = batch_of(parts, parts_of(batch))
            terms, gradients = replicas.run(self._gradients_of(objective), given, scalars, statistics)
            norm = tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])
            return {name: tf.cast(value, tf.float32) for name, value in {**terms, "gradient_norm": norm}.items()}

        with unchanged(self.model, seed=0):
            # On several devices only compiled: a strategy runs no operation by itself.
            specs = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in parts]
            values = (compiled(*specs)(step) if replicas.size > 1 else step)(*parts)
            return {name: float(value) for name, value in values.items()}

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError))

    def measuring_step(self, objective: Objective) -> TensorFlowStep:
        new_view = self._new_view(training=False)
        return self._step(
            "measuring", objective, None, lambda: lambda batch, controls: dict(objective(new_view(), batch, controls))
        )

    # -- state

    def state(self) -> dict[str, Array]:
        return _arrays(named_weights(self.model))

    def load_state(self, state: Mapping[str, Array]) -> None:
        _assign(named_weights(self.model), state)

    def optimizer_state(self) -> dict[str, Array]:
        return _arrays(self._optimizer_variables())

    def load_optimizer_state(self, state: Mapping[str, Array]) -> None:
        _assign(self._optimizer_variables(), state)

    def _optimizer_variables(self) -> dict[str, Any]:
        slots = {f"optimizer/{index:04d}": variable for index, variable in enumerate(self._optimizer.variables)}
        return slots | {f"generator/{index:04d}": state for index, state in enumerate(generators(self.model))}

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
                "the optimizer of `classifier` must have a plain number as its learning rate, so that it can be set to "
                f"{value!r}, got a learning rate schedule"
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
            raise _not_callable(scheduler)

    # Keras has no scheduler object that is stepped from outside, and `check_scheduler` lets none pass.

    def step_scheduler(self, scheduler: Any, loss: float | None) -> None:
        raise _not_callable(scheduler)

    def scheduler_state(self, scheduler: Any) -> dict[str, Any]:
        raise _not_callable(scheduler)

    def load_scheduler_state(self, scheduler: Any, state: Mapping[str, Any]) -> None:
        raise _not_callable(scheduler)

    def save_weights(self, path: Path) -> None:
        self.model.save_weights(str(path), overwrite=True)

    def load_weights(self, path: Path) -> None:
        self.model.load_weights(str(path))


def _not_callable(scheduler: Any) -> TypeError:
    return TypeError(f"`scheduler` must be a callable epoch -> learning rate, got {type(scheduler).__name__}")


def _constants(pair: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
    if pair is None:
        return None
    one, two = (tf.constant(np.asarray(value, np.float32)) for value in pair)
    return one, two


def _spread(x: tf.Tensor, eps: tf.Tensor, mean_std: tuple[tf.Tensor, tf.Tensor] | None) -> tf.Tensor:
    """How far each feature may go in an L2 ball, of the shape of x."""
    radius = tf.ones_like(x) * eps
    return radius if mean_std is None else radius / mean_std[1]


def _standardised(x: tf.Tensor, mean_std: tuple[tf.Tensor, tf.Tensor] | None) -> tf.Tensor:
    if mean_std is None:
        return x
    mean, std = mean_std
    return (x - mean) / std


def _bytes(pair: tuple[tf.Tensor, tf.Tensor] | None) -> tuple[bytes, ...]:
    return () if pair is None else tuple(part.numpy().tobytes() for part in pair)


def _arrays(variables: Mapping[str, Any]) -> dict[str, Array]:
    return {name: _array(variable) for name, variable in variables.items()}


def _array(variable: Any) -> Array:
    """A copy of a variable; a file of NumPy has no bfloat16, and float32 holds all of its values."""
    array = np.array(variable.numpy())
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _assign(variables: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    wish = {name: tuple(variable.shape) for name, variable in variables.items()}
    got = {name: tuple(array.shape) for name, array in arrays.items()}
    if wish != got:
        differing = sorted({name for name, _ in wish.items() ^ got.items()})
        raise ValueError(f"`state` must fit this network and optimizer, got different names or shapes for {differing}")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _measured(name: str, layer: Any) -> Measured:
    if isinstance(layer, keras.layers.Dense):
        return Measured(name, "dense", layer.units)
    convolutions = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    norm = isinstance(layer, keras.layers.BatchNormalization)
    return Measured(name, "conv" if isinstance(layer, convolutions) else "norm" if norm else None)

"""Interval propagation through the graph of operations that Keras 3 records of a Sequential or functional model.

`Walk` visits every call of the graph with a `Joint`, the value at the data and a box around it, and answers with the rule of
that operation. A subclassed model has no such graph, and an operation without a rule is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from art_entropic.backends.curvature import bends
from art_entropic.backends.errors import NoIntervalRuleError
from art_entropic.backends.tensorflow.joint import PRECISIONS, Call, Joint, Moments, Rule
from art_entropic.backends.tensorflow.rules import HINTS, LAYERS, OPERATIONS
from art_entropic.ops import Box

NO_GRAPH = "a subclassed model has no graph of operations to follow"
# Where an instance may carry code in place of that of its class.
_CODE = ("call", "__call__", "convolution_op", "quantized_call")


def _check_call(call: Call) -> None:
    """What no rule was made for, whatever the operation."""
    replaced = [name for name in _CODE if name in vars(call.operation)]
    if replaced:
        call.refuse(f"its `{replaced[0]}` is custom code, not that of {type(call.operation).__name__}")
    training = call.option("training")
    if isinstance(training, Joint) or (training is not None and training):
        call.refuse("it is called with training=True, so its predictions are random or depend on the other points of the batch")
    if any(isinstance(leaf, Joint) for leaf in keras.tree.flatten(call.option("mask"))):
        call.refuse("its mask depends on the input")
    for x in call.joints:
        if x.box is not None and x.value.dtype not in PRECISIONS:
            call.refuse(f"bounds need float32 or float64 arithmetic, {x.source!r} gives {x.value.dtype.name}")


def _rule(call: Call) -> Rule:
    operation, rule = call.operation, None
    name = type(operation).__name__
    if isinstance(operation, keras.Model):
        call.refuse("a model that is called with a mask has no rule" if has_graph(operation) else NO_GRAPH)
    if isinstance(operation, keras.Layer):
        if operation.compute_dtype not in PRECISIONS:
            call.refuse(f"bounds need float32 or float64 arithmetic, it computes in {operation.compute_dtype}")
        if getattr(operation, "quantization_mode", None) is not None:
            call.refuse(f"its weights are quantized ({operation.quantization_mode})")
        if getattr(keras.layers, name, None) is type(operation):
            rule = LAYERS.get(name)
    elif type(operation).__module__.startswith("keras."):
        rule = OPERATIONS.get(name)
    if rule is None:
        call.refuse(HINTS.get(name, ""))
    _check_call(call)
    return rule


def has_graph(model: Any) -> bool:
    """Whether calling the model is running the graph of operations that Keras knows."""
    if not isinstance(model, (keras.Sequential, keras.Function)) or any(name in vars(model) for name in _CODE):
        return False
    owners = [next(base for base in type(model).__mro__ if name in vars(base)) for name in ("call", "__call__")]
    return all(owner.__module__.startswith("keras.") for owner in owners)


def require_graph(model: Any) -> None:
    """Refuse a model whose layers nobody can list.

    Raises:
        NoIntervalRuleError: it has no graph of operations.
    """
    if not has_graph(model):
        raise NoIntervalRuleError(model.name, type(model).__name__, NO_GRAPH)


class Walk:
    """One pass through a Keras model, operation by operation.

    Args:
        training: batch statistics and dropout as in training.
        relu: how to compute the plain ReLU.
        like: a pass of the same model in training, by whose batch statistics batch norm is to standardise.
    """

    def __init__(
        self, *, training: bool, relu: Callable[[tf.Tensor], tf.Tensor] = tf.nn.relu, like: Walk | None = None
    ) -> None:
        self.training = training
        self.relu = relu
        self._like = like
        self._statistics: dict[int, list[Moments]] = {}  # of each batch norm, use by use
        self._standardised: Counter[int] = Counter()  # how often each batch norm has been at work
        self.losses: list[tf.Tensor] = []  # what activity regularizers and `add_loss` of the layers made of the values
        self.curved: str | None = None  # the first operation that bends
        self._entered: list[Joint] = []

    def run(self, operation: str, operands: int) -> None:
        """Note that an operation runs, and how many of its arguments depend on the input."""
        if self.curved is None and bends(operation, operands):
            self.curved = operation

    def keep_statistics(self, layer: Any, statistics: Moments) -> None:
        """Note by what a batch norm standardises the batch, for a pass that is to do so too."""
        self._statistics.setdefault(id(layer), []).append(statistics)

    def has_statistics(self, layer: Any) -> bool:
        return id(layer) in self._statistics

    def given_statistics(self, layer: Any) -> Moments | None:
        """By what a batch norm is to standardise instead of by its own, None where nothing was given."""
        use = self._standardised[id(layer)]
        self._standardised[id(layer)] += 1
        given = [] if self._like is None else self._like._statistics.get(id(layer), [])
        return given[use] if use < len(given) else None

    def enter(self, x: Joint) -> None:
        """Remember a tensor that enters a nonlinearity."""
        if all(x is not seen for seen in self._entered):
            self._entered.append(x)

    def standardised(self, result: tf.Tensor, x: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        return result

    def activated(self, call: Call, f: Callable[[tf.Tensor], tf.Tensor], x: Joint, bound: Callable[[Joint], Joint]) -> Joint:
        return bound(x)

    def logits(self, model: Any, x: Joint) -> Joint:
        """The whole model on one input."""
        logits = self.call(model, (x,), {})
        if not isinstance(logits, Joint):
            raise TypeError(f"the network must return one tensor of logits, got {type(logits).__name__}")
        self._entered = [seen for seen in self._entered if seen is not logits] + [logits]
        return logits

    def layers(self) -> list[tuple[str, Joint]]:
        """The pre-activations so far with unique names."""
        count: dict[str, int] = {}
        result = []
        for x in self._entered:
            count[x.source] = count.get(x.source, 0) + 1
            result.append((x.source if count[x.source] == 1 else f"{x.source}#{count[x.source]}", x))
        return result

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # One of None for each input where a model has several.
        masked = any(mask is not None for mask in keras.tree.flatten(kwargs.get("mask")))
        if has_graph(operation) and not masked:
            result = self._model(Call(self, operation, args, kwargs))
            self.losses += _activity_losses(operation, result)
            return result
        call = Call(self, operation, *_cast(operation, args, kwargs))
        try:
            result = _rule(call)(call)
        except NoIntervalRuleError:
            if call.bounded:
                raise
        else:
            self.run(type(operation).__name__, len(call.joints))
            self.losses += _activity_losses(operation, result)
            return result
        # Without boxes the operation itself always serves; a rule only tells which tensors enter a nonlinearity.
        result = call.plain()
        self.losses += own_losses(operation) if isinstance(operation, keras.Layer) else []
        return result

    def _model(self, call: Call) -> Any:
        model = call.operation
        if call.bounded:
            _check_call(call)
        inputs = _as_inputs(call)
        if isinstance(model, keras.Sequential):
            (x,) = inputs
            for layer in model.layers:
                x = self.call(layer, (x,), {})
            return x
        outputs = self._follow(model, inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _follow(self, model: Any, inputs: list[Joint]) -> list[Joint]:
        """A functional model: every call that its outputs need, each after those that it needs itself."""
        known = {id(tensor): x for tensor, x in zip(model.inputs, inputs, strict=True)}
        pending = list(reversed(model.outputs))
        while pending:
            tensor = pending[-1]
            if id(tensor) in known:
                pending.pop()
                continue
            history = tensor._keras_history
            node = history.operation._inbound_nodes[history.node_index]
            missing = [needed for needed in node.input_tensors if id(needed) not in known]
            if missing:
                pending.extend(reversed(missing))
                continue
            args, kwargs = keras.tree.map_structure(
                lambda leaf: known[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
                (node.arguments.args, node.arguments.kwargs),
            )
            outputs = keras.tree.flatten(self.call(node.operation, args, kwargs))
            for symbol, output in zip(node.outputs, outputs, strict=True):
                known[id(symbol)] = _with_batch_axis(output, symbol.shape)
        return [known[id(tensor)] for tensor in model.outputs]


def own_losses(layer: Any) -> list[tf.Tensor]:
    """What activity regularizers and `add_loss` made of the last call of a layer or model, without those of its weights."""
    regularized = sum(weight.regularizer is not None for weight in layer.trainable_weights)
    losses: list[tf.Tensor] = layer.losses
    return losses[: len(losses) - regularized]


def _activity_losses(operation: Any, result: Any) -> list[tf.Tensor]:
    """What Keras adds for the `activity_regularizer` of a layer that it calls itself: its mean over the examples."""
    regularizer = getattr(operation, "activity_regularizer", None)
    if regularizer is None:
        return []
    values = [x.value for x in keras.tree.flatten(result)]
    losses = [regularizer(value) for value in values]
    return [loss / tf.cast(tf.shape(v)[0], loss.dtype) for loss, v in zip(losses, values, strict=True)]


def _with_batch_axis(x: Joint, shape: tuple[int | None, ...]) -> Joint:
    """Keras does not know the length of the batch when it records a graph."""
    axis = next((axis for axis, length in enumerate(shape) if length is None), None)
    return x if axis == x.batch_axis else replace(x, batch_axis=axis)


def _as_inputs(call: Call) -> list[Joint]:
    """What a model makes of the tensors that it is called with: the precision and the rank of its inputs."""
    model = call.operation
    joints: list[Any] = call.joints
    # A Sequential of no known shape takes what comes.
    expected: list[Any] = getattr(model, "inputs", None) or joints
    given = call.first
    if isinstance(given, dict) and expected is not joints and not isinstance(model.input, dict):
        # Keras looks them up by name, whatever their order.
        joints = [given.get(like.name) for like in expected]
    if len(expected) != len(joints) or not all(isinstance(x, Joint) for x in joints):
        call.refuse(f"one of its {len(expected)} inputs does not depend on the network's input, or has an unexpected name")
    return [_as_input(call, x, like) for x, like in zip(joints, expected, strict=True)]


def _as_input(call: Call, x: Joint, like: Any) -> Joint:
    if isinstance(like, Joint):
        return like
    if call.bounded and like.dtype not in PRECISIONS:
        call.refuse(f"bounds need float32 or float64 arithmetic, its input is {like.dtype}")
    rank, wanted = len(x.value.shape), len(like.shape)

    def adjust(t: tf.Tensor) -> tf.Tensor:
        if rank == wanted + 1 and t.shape[-1] == 1:
            t = tf.squeeze(t, -1)
        elif rank == wanted - 1 and like.shape[-1] == 1:
            t = tf.expand_dims(t, -1)
        return tf.cast(t, like.dtype)

    if x.value.dtype == like.dtype and rank == wanted:
        return x
    box, spread = None if x.box is None else Box(*map(adjust, x.box)), None if x.spread is None else adjust(x.spread)
    return replace(x, value=adjust(x.value), box=box, spread=spread)


def _cast(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments in the precision that a layer computes in, as Keras casts them."""
    if not isinstance(operation, keras.Layer) or not operation.autocast:
        return args, kwargs
    dtype = operation.compute_dtype

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Joint) or leaf.value.dtype == dtype or not leaf.value.dtype.is_floating:
            return leaf
        box = None if leaf.box is None else Box(*(tf.cast(end, dtype) for end in leaf.box))
        spread = None if leaf.spread is None else tf.cast(leaf.spread, dtype)
        return replace(leaf, value=tf.cast(leaf.value, dtype), box=box, spread=spread)

    args, kwargs = keras.tree.map_structure(cast, (args, kwargs))
    return args, kwargs


@tf.custom_gradient
def straight_relu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """ReLU whose gradient does not depend on x: TensorFlow's sends the zeros of its curvature through the network."""
    y = tf.nn.relu(x)
    return y, lambda upstream: tf.raw_ops.ReluGrad(gradients=upstream, features=tf.stop_gradient(y))

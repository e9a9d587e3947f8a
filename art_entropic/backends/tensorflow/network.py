"""TensorFlow: a user's own Keras model and its loss: what they ask for, and what can be done about a final softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from art_entropic.backends.errors import NOT_DIFFERENTIABLE, OutputError
from art_entropic.backends.protocol import OwnLoss
from art_entropic.backends.tensorflow.replicas import mirrored_strategy
from art_entropic.backends.tensorflow.walk import has_graph


def one_output(outputs: Any) -> tf.Tensor:
    """The one tensor of logits that a model returns, in float32.

    Raises:
        OutputError: it returns something else.
    """
    if not tf.is_tensor(outputs):
        raise OutputError(
            f"`classifier` must return one tensor of logits, its model returns a {type(outputs).__name__}: give it one output"
        )
    return tf.cast(outputs, tf.float32)


def batch_norms(model: Any) -> list[Any]:
    """The layers that in training standardise by the statistics of the batch."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]


def named_weights(model: Any) -> dict[str, Any]:
    """All weights of a model by names that say their place in it."""
    # The automatic layer names in a path count all models of the process; order and the last name do not.
    return {f"{index:04d}/{variable.name}": variable for index, variable in enumerate(model.weights)}


def differentiated(tape: tf.GradientTape, score: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The gradient of a score with respect to inputs.

    Raises:
        ValueError: no gradient reaches them.
    """
    gradient = tape.gradient(score, x)
    if gradient is None:
        raise ValueError(NOT_DIFFERENTIABLE)
    return gradient


def total(losses: Sequence[tf.Tensor]) -> tf.Tensor:
    """Their sum in float32; a loss need not be a scalar."""
    return tf.add_n([tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses])


def penalty_of(model: Any, passes: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor | None:
    """The regularisers of a model's weights, and what its layers made of what passed through; None where there is nothing.

    Args:
        passes: of each pass its rows, and the sum of what the layers added. Each counts by its share of all rows, since Keras
            has the mean over a batch.
    """
    regularized = [variable for variable in model.trainable_variables if variable.regularizer is not None]
    losses = [total([variable.regularizer(variable)]) for variable in regularized]
    if passes:
        rows = tf.add_n([n for n, _ in passes])
        losses += [n / rows * added for n, added in passes]
    return tf.add_n(losses) if losses else None


_CROSS_ENTROPIES = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
_OF_THIS_NAME = {
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "auto")


def own_loss(loss: Any, model: Any, *, has_own_step: bool) -> OwnLoss:
    """What Keras' cross-entropies ask for; any other loss is replaced by them, and the remarks say so.

    Args:
        has_own_step: the estimator was given a `train_step`.
    """
    remarks = list(_uncounted(model))
    if has_own_step:
        remarks.append("the classifier has a train_step of its own, which the retraining does not call")
    loss = _as_loss(loss)
    if type(loss) not in _CROSS_ENTROPIES:
        name = getattr(loss, "__name__", type(loss).__name__) if not isinstance(loss, str) else loss
        remarks.append(f"its loss is {name}; the retraining minimises the cross-entropy of the logits")
        return OwnLoss(remarks=tuple(remarks))
    if not loss.from_logits:
        remarks.append(
            f"its loss {loss.name!r} has from_logits=False and would read the logits as probabilities; the retraining does not"
        )
    if loss.reduction not in _MEANS:
        remarks.append(f"its loss has reduction={loss.reduction!r}; the retraining takes the mean over each batch")
    if getattr(loss, "ignore_class", None) is not None:
        remarks.append(f"its loss ignores class {loss.ignore_class}; the retraining learns this class like any other")
    return OwnLoss(None, float(getattr(loss, "label_smoothing", 0.0)), tuple(remarks))


def _as_loss(loss: Any) -> Any:
    """Keras takes a name and a function for the class of the same name with its defaults."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None)
    return _OF_THIS_NAME[name]() if name in _OF_THIS_NAME else loss


def _uncounted(model: Any) -> list[str]:
    """What code of the model's own, and the way it was compiled, ask of a step that retraining takes by itself."""
    told = []
    own = [name for name in ("train_step", "compute_loss") if not getattr(type(model), name).__module__.startswith("keras.")]
    if own:
        told.append(f"its model overrides {' and '.join(own)}, which the retraining does not call")
    weights = model._compile_config.config.get("loss_weights") if model.compiled else None
    if weights is not None:
        told.append(f"the retraining ignores loss_weights={weights!r} of its model")
    strategy = mirrored_strategy(model)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        layers = model._flatten_layers(include_self=True)
        adding = [layer.name for layer in layers if layer.activity_regularizer is not None or layer._losses]
        told += [f"under a tf.distribute strategy the losses that {', '.join(adding)} add are ignored"] if adding else []
    return told


_SOFTMAX = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
_LOG_SOFTMAX = (keras.activations.log_softmax, keras.ops.log_softmax, tf.nn.log_softmax)
_WISH = "`classifier` must hold a model whose last layer is a softmax or log-softmax, or has one as its activation"


def remove_softmax(estimator: Any, model: Any, *, compiled: bool, shape: tuple[int, ...]) -> str:
    """See `Backend`. Whoever calls it forgets what was compiled of the model.

    A `train_step` of the estimator's own is dropped, since its loss takes probabilities.

    Args:
        compiled: the model itself holds optimizer and loss.
        shape: of one example.
    Returns:
        Name of the layer. The estimator has a new model of the same layers where Keras cannot cut the graph in place.
    """
    loss = _taking_logits(model.loss if compiled else estimator.loss_object)
    x = np.random.default_rng(0).random((8, *shape), np.float32)
    before = model(x, training=False)
    stripped = _without_softmax(model)
    try:
        _check_restored(stripped, before, stripped.model(x, training=False))
    except Exception:
        stripped.undo()
        raise
    if model.compiled:
        _recompile(model, stripped.model, loss if compiled else model.loss)
    estimator._model = stripped.model
    if compiled:
        estimator._use_logits = True  # it decides the gradients of a KerasClassifier
        estimator._input = stripped.model.inputs[estimator.input_layer]
        estimator._output = stripped.model.outputs[estimator.output_layer]
        estimator._layer_names = estimator._get_layers()
    else:
        estimator._loss_object, estimator._train_step = loss, None
    return stripped.layer


def _taking_logits(loss: Any) -> Any:
    """The same loss, of logits.

    Raises:
        ValueError: it cannot be told what it takes.
    """
    if loss is None:
        return None
    there = _as_loss(loss)
    config = there.get_config() if isinstance(there, keras.losses.Loss) else {}
    if "from_logits" not in config:
        name = there if isinstance(there, str) else getattr(there, "__name__", type(there).__name__)
        raise ValueError(
            "`classifier` must have the loss CategoricalCrossentropy or SparseCategoricalCrossentropy, which can take logits, "
            f"got {name}"
        )
    then = type(there).from_config({**config, "from_logits": True})
    then.__name__ = type(then).__name__  # by which KerasClassifier.fit knows a loss that takes the index of a class
    return then


def _recompile(there: Any, model: Any, loss: Any) -> None:
    """Compile the model as it was, with its optimizer, the state of which stays, and another loss."""
    settings = {**there._compile_config.config, "optimizer": there.optimizer, "loss": loss}
    model.compile(**settings, auto_scale_loss=False)


@dataclass(frozen=True)
class _Stripped:
    """A model without its final softmax."""

    model: Any  # the same object where that could be
    layer: str
    is_log: bool
    undo: Callable[[], None]


def _check_restored(stripped: _Stripped, before: tf.Tensor, logits: tf.Tensor) -> None:
    """Refuse a model that without its softmax does not return what went into it."""
    restore = tf.nn.log_softmax if stripped.is_log else tf.nn.softmax
    there, here = np.asarray(tf.cast(before, tf.float32)), np.asarray(restore(tf.cast(logits, tf.float32)))
    tolerance = 1e-2 if before.dtype.size < 4 else 1e-4
    if there.shape != here.shape or not np.allclose(here, there, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"{_WISH}, over the classes and used only once, got {stripped.layer!r}: without it the model does not return logits"
        )


def _last(model: Any) -> Any:
    """The operation that a graph ends in."""
    return model.layers[-1] if isinstance(model, keras.Sequential) else model.outputs[0]._keras_history.operation


def _is_log(operation: Any) -> bool | None:
    """Whether an operation is a log-softmax, False where it is a softmax, None where it is neither."""
    own = type(operation).__module__.startswith("keras.")
    return {"Softmax": False, "LogSoftmax": True}.get(type(operation).__name__) if own else None


def _activation_is_log(layer: Any) -> bool | None:
    """The same of the activation of a layer."""
    activation = getattr(layer, "activation", None)
    if any(activation is one for one in _LOG_SOFTMAX):
        return True
    return False if any(activation is one for one in _SOFTMAX) else _is_log(activation)


def _without_softmax(model: Any) -> _Stripped:
    """Take the final softmax or log-softmax of a graph away, in place where Keras can, else in a new model of the same layers.

    Raises:
        ValueError: there is none; nothing has been changed then.
    """
    if not has_graph(model):
        raise ValueError(f"{_WISH}, got {model.name!r} of class {type(model).__name__}, whose own code hides it")
    if len(model.outputs) != 1:
        raise ValueError(f"{_WISH}, got {model.name!r} with {len(model.outputs)} outputs")
    last = _last(model)
    if has_graph(last):
        inner = _without_softmax(last)
        return replace(inner, model=model) if inner.model is last else _with_another_end(model, last, inner)
    is_log = _activation_is_log(last)
    if is_log is not None:
        there = last.activation
        last.activation = keras.activations.linear
        return _Stripped(model, last.name, is_log, lambda: setattr(last, "activation", there))
    is_log = _is_log(last)
    if is_log is None:
        raise ValueError(f"{_WISH}, got {model.name!r}, which ends in {type(last).__name__} {last.name!r}")
    return _with_another_end(model, last, _Stripped(None, last.name, is_log, lambda: None))


def _with_another_end(model: Any, last: Any, inner: _Stripped) -> _Stripped:
    """A model that ends in the model of `inner`, or where that is None in what goes into its last operation now."""
    if not type(model).__module__.startswith("keras.") or (isinstance(model, keras.Sequential) and len(model.layers) == 1):
        inner.undo()
        raise ValueError(
            f"{_WISH}, got {model.name!r} of class {type(model).__name__}, whose last layer {last.name!r} cannot be removed"
        )
    if isinstance(model, keras.Sequential):
        return _with_another_layer(model, last, inner)
    history = model.outputs[0]._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    arguments = node.arguments
    end = node.input_tensors[0] if inner.model is None else inner.model(*arguments.args, **arguments.kwargs)
    with model.distribute_strategy.scope():
        return replace(inner, model=keras.Model(model.input, end, name=model.name))


def _with_another_layer(model: Any, last: Any, inner: _Stripped) -> _Stripped:
    model.pop()
    if inner.model is not None:
        model.add(inner.model)

    def undo() -> None:
        if inner.model is not None:
            model.pop()
        inner.undo()
        model.add(last)

    return replace(inner, model=model, undo=undo)

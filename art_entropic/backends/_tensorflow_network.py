"""TensorFlow: a user's own Keras model and its loss: what they ask for, and what can be done about a final softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from art_entropic.backends import OutputError, OwnLoss
from art_entropic.backends._tensorflow_bounds import has_graph

# ------------------------------------------------------------------------------------------------------------ outputs


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


def differentiated(tape: tf.GradientTape, score: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The gradient of a score with respect to inputs.

    Raises:
        ValueError: no gradient reaches them.
    """
    gradient = tape.gradient(score, x)
    if gradient is None:
        raise ValueError(
            "`classifier` must be differentiable in its input, but no gradient of its logits reaches it, as behind an "
            "embedding of indices or an operation of whole numbers"
        )
    return gradient


# --------------------------------------------------------------------------------------------------------------- loss


def penalty_of(model: Any) -> tf.Tensor | None:
    """The sum of the regularisers of a model's weights, None where they have none."""
    losses = [variable.regularizer(variable) for variable in model.trainable_variables if variable.regularizer is not None]
    return tf.add_n([tf.cast(loss, tf.float32) for loss in losses]) if losses else None


_CROSS_ENTROPIES = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
_OF_THIS_NAME = {
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "auto")


def own_loss(loss: Any, model: Any) -> OwnLoss:
    """What Keras' cross-entropies ask for; any other loss is replaced by them, and the remarks say so."""
    remarks = list(_uncounted(model))
    loss = _as_loss(loss)
    if type(loss) not in _CROSS_ENTROPIES:
        name = getattr(loss, "__name__", type(loss).__name__) if not isinstance(loss, str) else loss
        remarks.append(f"its loss is {name}; the retraining minimises the cross-entropy of the logits")
        return OwnLoss(remarks=tuple(remarks))
    if not loss.from_logits:
        remarks.append(
            f"its loss {loss.name!r} has from_logits=False and takes the logits for probabilities; the retraining does not"
        )
    if loss.reduction not in _MEANS:
        remarks.append(f"its loss has reduction={loss.reduction!r}; the retraining takes the mean over each batch")
    if getattr(loss, "ignore_class", None) is not None:
        remarks.append(f"its loss ignores class {loss.ignore_class}; the retraining learns it as any other")
    return OwnLoss(None, float(getattr(loss, "label_smoothing", 0.0)), tuple(remarks))


def _as_loss(loss: Any) -> Any:
    """Keras takes a name and a function for the class of the same name with its defaults."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None)
    return _OF_THIS_NAME[name]() if name in _OF_THIS_NAME else loss


def _uncounted(model: Any) -> list[str]:
    """Losses of the model that depend on what passes through its layers, which a step by layers cannot count."""
    layers = list(model._flatten_layers(include_self=True))
    regularised = [layer.name for layer in layers if getattr(layer, "activity_regularizer", None) is not None]
    adding = [layer.name for layer in layers if layer._losses and layer.name not in regularised]
    told = []
    if regularised:
        told.append(f"the activity regularizer of {', '.join(regularised)} is not counted")
    if adding:
        told.append(f"what {', '.join(adding)} adds by add_loss is not counted")
    return told


# ------------------------------------------------------------------------------------------------------------ softmax


def remove_softmax(estimator: Any, model: Any, *, compiled: bool, shape: tuple[int, ...]) -> str:
    """See `Backend`. Whoever calls it forgets what was compiled of the model.

    Args:
        compiled: the model itself holds optimizer and loss.
        shape: of one example.
    """
    x = np.random.default_rng(0).random((2, *shape), np.float32)
    before = model(x, training=False)
    layer, put_back = _without_softmax(model)
    if layer is None or put_back is None:
        raise ValueError(
            "`classifier` must end in a layer with activation='softmax', or be Sequential and end in keras.layers.Softmax, to "
            f"have it taken away, got the model {model.name!r}, which does not"
        )
    if not np.allclose(tf.nn.softmax(model(x, training=False)), before, rtol=1e-4, atol=1e-6):
        put_back()
        raise ValueError(f"`classifier` must predict by the softmax of what is before it, got {model.name!r}, which does not")
    loss = _as_loss(model.loss if compiled else estimator.loss_object)
    if type(loss) in _CROSS_ENTROPIES and not loss.from_logits:
        loss = type(loss).from_config({**loss.get_config(), "from_logits": True})
        if compiled:
            _recompile(model, loss)
        else:
            estimator._loss_object = loss
    if hasattr(estimator, "_use_logits"):  # of KerasClassifier, whose gradients it decides
        estimator._use_logits = True
    return layer


def _recompile(model: Any, loss: Any) -> None:
    metrics = getattr(model, "_compile_metrics", None)
    model.compile(
        optimizer=model.optimizer,
        loss=loss,
        metrics=None if metrics is None else metrics._user_metrics,
        weighted_metrics=None if metrics is None else metrics._user_weighted_metrics,
        run_eagerly=model.run_eagerly,
        jit_compile=model.jit_compile,
    )


def _without_softmax(model: Any) -> tuple[str | None, Callable[[], None] | None]:
    """Take the softmax at the end of a model away; its layer's name and how to put it back, None where there is none."""
    last = _last_layer(model)
    if isinstance(last, keras.layers.Softmax) and isinstance(model, keras.Sequential):
        model.pop()
        return last.name, lambda: model.add(last)
    if last is None or getattr(last, "activation", None) is not keras.activations.softmax:
        return None, None
    last.activation = keras.activations.linear

    def put_back() -> None:
        last.activation = keras.activations.softmax

    return last.name, put_back


def _last_layer(model: Any) -> Any:
    """The layer that makes the output of a model with a graph, inside its sub-models; None where nobody knows."""
    if not has_graph(model) or len(model.outputs) != 1:
        return None
    last = model.outputs[0]._keras_history.operation
    return _last_layer(last) if has_graph(last) else last


__all__ = ["differentiated", "one_output", "own_loss", "penalty_of", "remove_softmax"]

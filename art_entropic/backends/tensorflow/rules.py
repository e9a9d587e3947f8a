"""TensorFlow: the interval rules of Keras' layers and operations, and the tables that say which has which.

A rule takes a `Call` and returns what the operation returns, a `Joint` for each tensor."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from art_entropic import intervals
from art_entropic.backends.errors import FINAL_SOFTMAX, NoIntervalRuleError
from art_entropic.backends.tensorflow.joint import (
    PRECISIONS,
    Call,
    Joint,
    Moments,
    Rule,
    box_of,
    in_precision,
    lower_of,
    upper_of,
)
from art_entropic.backends.tensorflow.ops import ops
from art_entropic.ops import Box


def _same(call: Call) -> Joint:
    return replace(call.only, source=call.name)


def _monotone(call: Call) -> Any:
    """Never decreasing in any of its tensors: the operation itself on each part."""
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return keras.tree.map_structure(lambda v: Joint(v, None, call.name), value)
    return keras.tree.map_structure(
        lambda v, lower, upper: Joint(v, Box(lower, upper), call.name),
        value,
        call.on([lower_of(x) for x in call.joints]),
        call.on([upper_of(x) for x in call.joints]),
    )


def _moved(call: Call) -> Any:
    """Each number goes to one place at most, unchanged; what is new is constant."""
    result = _monotone(call)
    spread = call.joints[0].spread if len(call.joints) == 1 else None
    if spread is None:
        return result
    parts = call.on([spread]), call.on([tf.zeros_like(spread)])
    return keras.tree.map_structure(lambda x, part, zero: replace(x, spread=part - zero), result, *parts)


def _index(call: Call) -> Any:
    # A list of places may name one twice.
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in call.leaves[1:])
    return (_moved if plain else _monotone)(call)


def _pad(call: Call) -> Any:
    return (_moved if call.operation.mode == "constant" else _monotone)(call)


def _scaled(call: Call, result: Joint, scale: Callable[[tf.Tensor], tf.Tensor]) -> Joint:
    """A result of one tensor and of constants whose numbers are those of the tensor, scaled, each in its place."""
    if len(call.joints) != 1 or call.only.spread is None:
        return result
    x, (before, after) = call.only, (one.value.shape.as_list() for one in (call.only, result))
    # A constant of a larger shape repeats them.
    same = len(before) == len(after) and all(
        axis == x.batch_axis or (length is not None and length == after[axis]) for axis, length in enumerate(before)
    )
    return replace(result, spread=tf.abs(scale(x.spread))) if same else result


def _add(call: Call) -> Any:
    return _scaled(call, _monotone(call), tf.identity)


def _multilinear(call: Call) -> Joint:
    """Affine in each of its tensors alone, so that the extremes lie at corners: products, and lines of either slope."""
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return Joint(value, None, call.name)
    corners = [call.on(corner) for corner in itertools.product(*(box_of(x) for x in call.joints))]
    box = Box(functools.reduce(tf.minimum, corners), functools.reduce(tf.maximum, corners))
    return Joint(value, box, call.name)


def _multiply(call: Call) -> Joint:
    """A product, or a quotient, that has no constant term."""
    return _scaled(call, _multilinear(call), call.one)


def _rescaling(call: Call) -> Joint:
    result, scale = _multilinear(call), call.operation.scale
    if np.ndim(scale) and keras.config.image_data_format() == "channels_first":
        return result  # where Keras adds axes to the scale
    return _scaled(call, result, lambda t: t * tf.cast(scale, t.dtype))


def _normalization(call: Call) -> Joint:
    layer = call.operation

    def scale(t: tf.Tensor) -> tf.Tensor:
        deviation = tf.maximum(tf.sqrt(tf.cast(layer.variance, t.dtype)), keras.backend.epsilon())
        return t * deviation if layer.invert else t / deviation

    return _scaled(call, _monotone(call), scale)


def _within_points(call: Call) -> Any:
    """Along axes that must not be the one of the batch: a bound would hold for a point in the company of this batch only."""
    x, axis = call.only, call.operation.axis
    rank = len(x.value.shape)
    axes = range(rank) if axis is None else [place % rank for place in np.atleast_1d(axis).tolist()]
    if x.batch_axis in axes:
        call.refuse(f"axis={axis!r} mixes the points of a batch")
    return _monotone(call)


def _subtract(call: Call) -> Joint:
    if len(call.joints) == 1:
        return _scaled(call, _multilinear(call), tf.identity)
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return Joint(value, None, call.name)
    minuend, subtrahend = map(box_of, call.joints)
    box = Box(call.on([minuend.lower, subtrahend.upper]), call.on([minuend.upper, subtrahend.lower]))
    return Joint(value, box, call.name)


def _divide(call: Call) -> Joint:
    if len(call.joints) > 1 or not isinstance(call.leaves[0], Joint):
        call.refuse("the divisor depends on the input")
    return _multiply(call)


def _power(call: Call) -> Joint:
    exponent = call.leaves[1]
    if not isinstance(call.leaves[0], Joint) or isinstance(exponent, Joint) or not np.all(np.equal(exponent, 2)):
        call.refuse("the square of a tensor is the only power with a rule")
    return _activate(call, call.one, 0.0, call.only)


def _interpolated(call: Call) -> Any:
    if call.operation.interpolation not in ("nearest", "bilinear"):
        call.refuse(f"interpolation={call.operation.interpolation!r} has negative coefficients")
    return _monotone(call)


def _change_precision(call: Call) -> Any:
    if call.operation.dtype not in PRECISIONS:
        call.refuse(f"bounds need float32 or float64 arithmetic, it casts to {call.operation.dtype}")
    return _moved(call)


def _activate(call: Call, f: Callable[[tf.Tensor], tf.Tensor], argmin: float | None, x: Joint) -> Joint:
    """An element-wise nonlinearity that never decreases (argmin None), or falls up to argmin and rises after it."""
    call.walk.enter(x)

    def bound(x: Joint) -> Joint:
        box = x.box
        if box is not None:
            box = intervals.monotone(f, box) if argmin is None else intervals.valley(ops, f, argmin, box)
            # TensorFlow's graph optimiser takes a maximum before the monotone function that it follows, and gets it wrong
            # where it does so for both ends: pooled upper bounds came out too low. It does not look behind this.
            box = Box(*tf.raw_ops.IdentityN(input=list(box)))
        return Joint(f(x.value), box, call.name)

    return call.walk.activated(call, f, x, bound)


def _nonlinearity(argmin: float | None = None) -> Rule:
    def rule(call: Call) -> Joint:
        return _activate(call, call.one, argmin, call.only)

    return rule


def _sloped(attribute: str) -> Rule:
    """Rises on both sides of 0 if the slope on the negative one is not negative."""

    def rule(call: Call) -> Any:
        slope = call.setting(attribute)
        if slope is not None and slope < 0:
            call.refuse(f"{attribute}={slope!r} makes it decreasing")
        return _activate(call, call.one, None, call.only)

    return rule


def _relu(call: Call) -> Any:
    threshold, top, slope = map(call.setting, ("threshold", "max_value", "negative_slope"))
    if threshold:
        call.refuse(f"threshold={threshold!r} makes it discontinuous")
    if top is not None and top < 0:
        call.refuse(f"max_value={top!r} makes it decreasing")
    if top is None and not slope:
        return _plain_relu(call)
    return _sloped("negative_slope")(call)


def _plain_relu(call: Call) -> Joint:
    return _activate(call, call.walk.relu, None, call.only)


def _celu(call: Call) -> Joint:
    alpha = call.setting("alpha")
    if alpha is None or alpha <= 0:
        call.refuse(f"alpha={alpha!r} makes it decreasing, or divides by 0")
    return _activate(call, call.one, None, call.only)


def _squareplus(call: Call) -> Joint:
    curvature = call.setting("b")
    if curvature is None or curvature < 0:
        call.refuse(f"b={curvature!r} makes it decreasing")
    return _activate(call, call.one, None, call.only)


def _prelu(call: Call) -> Joint:
    """Two lines that meet at 0, of any slopes: the extremes lie at the ends, or at 0 where the box holds it."""
    x = call.only
    call.walk.enter(x)

    def bound(x: Joint) -> Joint:
        if x.box is None:
            return Joint(call.one(x.value), None, call.name)
        places = (x.box.lower, x.box.upper, tf.minimum(tf.maximum(0.0, x.box.lower), x.box.upper))
        ends = [call.one(place) for place in places]
        return Joint(call.one(x.value), Box(functools.reduce(tf.minimum, ends), functools.reduce(tf.maximum, ends)), call.name)

    return call.walk.activated(call, call.one, x, bound)


def _gelu(call: Call) -> Joint:
    argmin = intervals.GELU_TANH_ARGMIN if call.operation.approximate else intervals.GELU_ARGMIN
    return _activate(call, call.one, argmin, call.only)


Value = TypeVar("Value")


def _by_name(*rows: tuple[Value, str]) -> dict[str, Value]:
    """A table whose rows give one value to all the names behind it."""
    return {name: value for value, names in rows for name in names.split()}


HARD_SILU_ARGMIN = -1.5
# Functions that a layer may carry as its activation: the place of their only minimum, None where they never decrease.
FUNCTIONS: dict[str, float | None] = _by_name(
    (None, "relu relu6 leaky_relu elu selu celu sigmoid tanh softplus softsign exponential exp log_sigmoid hard_sigmoid"),
    (None, "hard_tanh hard_shrink soft_shrink tanh_shrink squareplus sparse_plus sparse_sigmoid"),
    (intervals.GELU_ARGMIN, "gelu"),
    (intervals.SILU_ARGMIN, "silu"),
    (intervals.MISH_ARGMIN, "mish"),
    (HARD_SILU_ARGMIN, "hard_silu"),
    (0.0, "abs square"),
)
MODULES = (keras.activations, keras.ops, tf.nn, tf.math)
_ARGMIN: dict[int, float | None] = {
    id(getattr(module, name)): argmin for name, argmin in FUNCTIONS.items() for module in MODULES if name in dir(module)
} | {id(keras.ops.gelu): intervals.GELU_TANH_ARGMIN}  # the only one of the three whose default is the approximation
_PLAIN_RELUS = tuple(id(module.relu) for module in (keras.activations, keras.ops, tf.nn))

HINTS: dict[str, str] = {
    **dict.fromkeys(["Softmax", "LogSoftmax", "Sparsemax"], FINAL_SOFTMAX),
    **dict.fromkeys(["softmax", "softmax_v2", "log_softmax", "log_softmax_v2", "sparsemax"], FINAL_SOFTMAX),
}


def _apply_activation(call: Call, f: Any, x: Joint) -> Any:
    """The `activation` argument of a layer."""
    if f is None or f is keras.activations.linear:
        return replace(x, source=call.name)
    if isinstance(f, keras.Layer):
        return call.walk.call(f, (x,), {})
    if id(f) not in _ARGMIN:
        name = getattr(f, "__name__", type(f).__name__)
        raise NoIntervalRuleError(call.name, f"activation {name!r}", HINTS.get(name, ""))
    call.walk.run(f.__name__, 1)
    return _activate(call, call.walk.relu if id(f) in _PLAIN_RELUS else f, _ARGMIN[id(f)], x)


def _activation(call: Call) -> Any:
    return _apply_activation(call, call.operation.activation, call.only)


Linear = Callable[[Any, tf.Tensor, tf.Tensor], tf.Tensor]  # layer, x, kernel -> kernel x


@tf.custom_gradient
def _spread(lower: tf.Tensor, upper: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., Any]]:
    """Centre and width of a box. This gradient and the next are what autodiff finds, in fewer passes over memory."""

    def gradient(centre: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        half = centre * 0.5
        return half - width, half + width

    return ((upper + lower) * 0.5, upper - lower), gradient


@tf.custom_gradient
def _ends(centre: tf.Tensor, radius: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., Any]]:
    """Lower and upper end of a box."""
    return (centre - radius, centre + radius), lambda lower, upper: (lower + upper, upper - lower)


def _affine(x: Joint, linear: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], kernel: Any, bias: Any, source: str) -> Joint:
    """`intervals.affine` of the map kernel x + bias, arranged for speed: it is most of the cost of a training step.

    Measured on CPU, three calls of a convolution beat two with value and centre stacked into one batch.
    """
    kernel = tf.convert_to_tensor(kernel)

    def signed(t: tf.Tensor) -> tf.Tensor:
        result = linear(t, kernel)
        # As the layers do: Keras adds a bias of the first axis along the last one where their lengths agree.
        return result if bias is None else keras.ops.add(result, bias)

    value = signed(x.value)
    if x.box is None:
        return Joint(value, None, source)
    centre, width = _spread(*x.box)
    # Half of the small kernel instead of half of the large width.
    radius = linear(width, tf.abs(kernel) * 0.5)
    box = Box(*_ends(signed(centre), radius))
    if x.spread is not None:
        box = intervals.within_ellipsoid(ops, box, value, lambda t: linear(t, tf.square(kernel)), x.spread)
    return Joint(value, box, source)


def _bias(layer: Any) -> Any:
    if layer.bias is None:
        return None
    bias = tf.convert_to_tensor(layer.bias)
    if getattr(layer, "data_format", None) == "channels_first":
        return tf.reshape(bias, (1, -1) + (1,) * layer.rank)
    return bias


def _layer(linear: Linear) -> Rule:
    """A layer with `kernel`, `bias` and `activation`; an output takes an input through one entry of the kernel alone."""

    def rule(call: Call) -> Any:
        layer = call.operation
        x = _affine(call.only, functools.partial(linear, layer), layer.kernel, _bias(layer), call.name)
        return _apply_activation(call, layer.activation, x)

    return rule


def _dense(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return keras.ops.matmul(x, kernel)


def _einsum(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return keras.ops.einsum(layer.equation, x, kernel)


def _convolve(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    padding = layer.padding
    if padding == "causal":
        past = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        time = 1 if layer.data_format == "channels_last" else 2
        x = tf.pad(x, [[past if axis == time else 0, 0] for axis in range(3)])
        padding = "valid"
    return keras.ops.conv(
        x,
        kernel,
        strides=list(layer.strides),
        padding=padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )


def _convolve_depthwise(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return keras.ops.depthwise_conv(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )


def _convolve_transposed(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return keras.ops.conv_transpose(
        x,
        kernel,
        strides=list(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )


def _separable(call: Call) -> Any:
    layer = call.operation

    def pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return keras.ops.conv(x, kernel, strides=1, padding="valid", data_format=layer.data_format)

    x = _affine(call.only, functools.partial(_convolve_depthwise, layer), layer.depthwise_kernel, None, call.name)
    x = _affine(x, pointwise, layer.pointwise_kernel, _bias(layer), call.name)
    return _apply_activation(call, layer.activation, x)


def _gain(box: Box, gain: Any, bias: Any, shape: Sequence[int]) -> Box:
    if gain is not None:
        box = intervals.scale(ops, box, tf.reshape(tf.cast(gain, box.lower.dtype), shape))
    if bias is not None:
        shift = tf.reshape(tf.cast(bias, box.lower.dtype), shape)
        box = Box(box.lower + shift, box.upper + shift)
    return box


def _along(axes: Sequence[int], x: tf.Tensor) -> list[int]:
    """Shape that lies along these axes of x and broadcasts along the others."""
    axes = [axis % len(x.shape) for axis in axes]
    return [int(length) if axis in axes else 1 for axis, length in enumerate(x.shape)]


def _batch_norm(call: Call) -> Joint:
    """Batch norm with the statistics of the data for data and box alike, so that it is one affine map."""
    layer, x = call.operation, call.only
    if x.box is None:
        return Joint(_standardised(call, layer, x.value), None, call.name)
    by_batch = call.walk.training and layer.trainable
    value = call.on([x.value], training=call.walk.training)
    if not by_batch:
        ends = [call.on([end], training=False) for end in x.box]
        result = Joint(value, Box(tf.minimum(*ends), tf.maximum(*ends)), call.name)
        return _scaled(call, result, lambda t: t * _factor(layer, layer.moving_variance, t))
    if getattr(layer, "renorm", False):
        call.refuse("renorm=True has no rule in training")
    if call.option("mask") is not None:
        call.refuse("statistics under a mask have no rule in training")
    factor, shift = _factor_and_shift(layer, _moments(layer, x.value))
    shape = _along([layer.axis], x.value)
    value = call.walk.standardised(value, x.value, *(tf.reshape(part, shape) for part in (factor, shift)))
    result = Joint(value, in_precision(_gain(x.box, factor, shift, shape), value), call.name)
    return _scaled(call, result, lambda t: t * tf.reshape(factor, shape))


def _standardised(call: Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    """Batch norm of values alone: by given statistics, or as the layer does it; those of a batch are kept."""
    given = call.walk.given_statistics(layer)
    if given is not None:
        factor, shift = (tf.reshape(part, _along([layer.axis], x)) for part in _factor_and_shift(layer, given))
        return tf.cast(tf.cast(x, factor.dtype) * factor + shift, x.dtype)
    plain = not getattr(layer, "renorm", False) and call.option("mask") is None
    if call.walk.training and layer.trainable and plain:
        call.walk.keep_statistics(layer, _moments(layer, x))
    return call.on([x], training=call.walk.training)


def _moments(layer: Any, x: tf.Tensor) -> Moments:
    """Over the batch; over all replicas of a tf.distribute strategy where the layer does so."""
    axes = [axis for axis in range(len(x.shape)) if axis != layer.axis % len(x.shape)]
    if layer.synchronized:
        return Moments(*keras.ops.moments(x, axes, synchronized=True))
    return Moments(*tf.nn.moments(x if x.dtype == tf.float64 else tf.cast(x, tf.float32), axes))


def _factor_and_shift(layer: Any, statistics: Moments) -> tuple[tf.Tensor, tf.Tensor]:
    """Standardised x is x * factor + shift, in each channel."""
    factor = _factor(layer, statistics.variance, statistics.mean)
    beta = tf.cast(layer.beta, factor.dtype) if layer.center else 0.0
    return factor, beta - statistics.mean * factor


def _factor(layer: Any, variance: Any, like: tf.Tensor) -> tf.Tensor:
    """What batch norm multiplies each channel by, so that it lies along the channels of `like`."""
    factor = tf.math.rsqrt(tf.cast(variance, like.dtype) + layer.epsilon)
    factor = factor * tf.cast(layer.gamma, like.dtype) if layer.scale else factor
    return tf.reshape(factor, _along([layer.axis], like))


def _layer_norm(call: Call) -> Joint:
    layer = call.operation
    if layer.rms_scaling:
        call.refuse("rms_scaling=True has no rule")
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)

    def bound(box: Box) -> Box:
        shape = _along(axes, box.lower)

        def mean(t: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(t, axes, keepdims=True)

        box = intervals.standardise(ops, box, mean, int(np.prod(shape)), layer.epsilon)
        return _gain(box, layer.gamma, layer.beta, shape)

    return call.through(call.one, bound)


def _group_norm(call: Call) -> Joint:
    layer = call.operation

    def bound(box: Box) -> Box:
        shape = list(box.lower.shape)
        if None in shape[1:]:
            call.refuse("it averages over an axis of unknown length")
        channel = layer.axis % len(shape)
        grouped = [-1, *shape[1:channel], layer.groups, shape[channel] // layer.groups, *shape[channel + 1 :]]
        axes = [axis for axis in range(1, len(grouped)) if axis != channel]

        def mean(t: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(t, axes, keepdims=True)

        count = int(np.prod([grouped[axis] for axis in axes]))
        parts = Box(*(tf.reshape(end, grouped) for end in box))
        parts = intervals.standardise(ops, parts, mean, count, layer.epsilon)
        box = Box(*(tf.reshape(end, [-1, *shape[1:]]) for end in parts))
        return _gain(box, layer.gamma, layer.beta, _along([layer.axis], box.lower))

    return call.through(call.one, bound)


def _dropout(call: Call) -> Joint:
    if not call.walk.training:
        return _same(call)
    mask = call.on([tf.ones_like(call.only.value)], training=True)
    result = call.through(lambda t: t * mask, lambda box: intervals.scale(ops, box, mask))
    return _scaled(call, result, lambda t: t * mask)


def _gaussian_noise(call: Call) -> Joint:
    if not call.walk.training:
        return _same(call)
    noise = call.on([tf.zeros_like(call.only.value)], training=True)
    result = call.through(lambda t: t + noise, lambda box: Box(box.lower + noise, box.upper + noise))
    return _scaled(call, result, tf.identity)


_SELU_FLOOR = -1.0507009873554805 * 1.6732632423543772


def _alpha_dropout(call: Call) -> Joint:
    """Keeps a unit as a x + b, or sets it to the constant a * floor + b."""
    rate = call.operation.rate
    if not call.walk.training or rate == 0:
        return _same(call)
    slope = ((1.0 - rate) * (1.0 + rate * _SELU_FLOOR**2)) ** -0.5
    offset = -slope * _SELU_FLOOR * rate
    # On zeros the layer shows its draw: b where it keeps, a * floor + b where it drops.
    drawn = call.on([tf.zeros_like(call.only.value)], training=True)
    kept = drawn > offset + 0.5 * slope * _SELU_FLOOR

    def thin(t: tf.Tensor) -> tf.Tensor:
        return tf.where(kept, slope * t + offset, drawn)

    return call.through(thin, functools.partial(intervals.monotone, thin))


# Keras layers by the name under which `keras.layers` exports them; only these very classes, for a subclass may compute
# something else.
LAYERS: dict[str, Rule] = _by_name(
    (_layer(_dense), "Dense"),
    (_layer(_einsum), "EinsumDense"),
    (_layer(_convolve), "Conv1D Conv2D Conv3D"),
    (_layer(_convolve_depthwise), "DepthwiseConv1D DepthwiseConv2D"),
    (_layer(_convolve_transposed), "Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
    (_separable, "SeparableConv1D SeparableConv2D"),
    (_batch_norm, "BatchNormalization"),
    (_layer_norm, "LayerNormalization"),
    (_group_norm, "GroupNormalization"),
    (_activation, "Activation"),
    (_relu, "ReLU"),
    (_sloped("negative_slope"), "LeakyReLU"),
    (_sloped("alpha"), "ELU"),
    (_prelu, "PReLU"),
    (_monotone, "MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D"),
    (_monotone, "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D"),
    (_monotone, "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D"),
    (_monotone, "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D"),
    (_monotone, "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D"),
    (_monotone, "Add Average Maximum Minimum Concatenate RepeatVector UpSampling1D UpSampling3D"),
    (_moved, "Flatten Reshape Permute Cropping1D Cropping2D Cropping3D ZeroPadding1D ZeroPadding2D ZeroPadding3D"),
    (_normalization, "Normalization"),
    (_interpolated, "UpSampling2D"),
    (_subtract, "Subtract"),
    (_multilinear, "Multiply"),
    (_rescaling, "Rescaling"),
    (_dropout, "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout"),
    (_gaussian_noise, "GaussianNoise"),
    (_alpha_dropout, "AlphaDropout"),
    (_same, "ActivityRegularization Identity"),
)
# What Keras records of `keras.ops`, `keras.activations` and the operators of symbolic tensors, by class name.
OPERATIONS: dict[str, Rule] = _by_name(
    (_add, "Add"),
    (_monotone, "Maximum Minimum Clip MaxPool AveragePool AdaptiveMaxPool AdaptiveAveragePool"),
    (_moved, "Reshape Ravel Transpose Swapaxes Moveaxis Squeeze ExpandDims DepthToSpace SpaceToDepth"),
    (_moved, "Split Unstack Copy StopGradient"),
    (_index, "GetItem"),
    (_monotone, "BroadcastTo Concatenate Stack Hstack Vstack Repeat Tile"),
    (_pad, "Pad"),
    (_within_points, "Mean Sum Max Min Amax Amin Logsumexp Flip Roll"),
    (_subtract, "Subtract"),
    (_multiply, "Multiply Negative"),
    (_divide, "Divide TrueDivide"),
    (_power, "Power"),
    (_change_precision, "Cast"),
    (_relu, "ReLU"),
    (_plain_relu, "Relu"),
    (_sloped("negative_slope"), "LeakyRelu"),
    (_sloped("alpha"), "Elu"),
    (_celu, "Celu"),
    (_squareplus, "Squareplus"),
    (_nonlinearity(), "Relu6 Selu Sigmoid Tanh Softplus Softsign Exp LogSigmoid HardSigmoid HardTanh HardShrink SoftShrink"),
    (_nonlinearity(), "TanhShrink SparsePlus SparseSigmoid"),
    (_nonlinearity(0.0), "Abs Absolute Square"),
    (_gelu, "Gelu"),
    (_nonlinearity(intervals.SILU_ARGMIN), "Silu"),
    (_nonlinearity(intervals.MISH_ARGMIN), "Mish"),
    (_nonlinearity(HARD_SILU_ARGMIN), "HardSilu"),
)

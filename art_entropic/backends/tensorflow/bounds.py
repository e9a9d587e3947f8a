"""Interval propagation through the graph of operations that Keras 3 records of a Sequential or functional model.

`Walk` visits every call of the graph with a `Joint`, the value at the data and a box around it, and answers with the rule of
that operation. A subclassed model has no such graph, and an operation without a rule is an error."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import keras
import numpy as np
import tensorflow as tf

from art_entropic import intervals
from art_entropic.backends.curvature import bends
from art_entropic.backends.errors import FINAL_SOFTMAX, NoIntervalRuleError
from art_entropic.backends.tensorflow.ops import ops
from art_entropic.ops import Box


@dataclass(frozen=True, eq=False)
class Joint:
    """One tensor of the network: at the data, and a box around it where bounds are wanted."""

    value: tf.Tensor
    box: Box | None
    source: str  # name of the operation that computed it
    batch_axis: int | None = 0  # which tells the points of a batch apart, None where nobody knows


def box_of(x: Joint) -> Box:
    if x.box is None:
        raise TypeError(f"the tensor of {x.source!r} has no box")
    return x.box


def _lower(x: Joint) -> tf.Tensor:
    return box_of(x).lower


def _upper(x: Joint) -> tf.Tensor:
    return box_of(x).upper


def _in_precision(box: Box, like: tf.Tensor) -> Box:
    return Box(*(tf.cast(end, like.dtype) for end in box))


class _Call:
    """One operation of the graph with its arguments, `Joint` where the graph has a tensor."""

    def __init__(self, walk: Walk, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.walk, self.operation = walk, operation
        self._arguments = (args, kwargs)
        self.leaves = keras.tree.flatten(self._arguments)
        self.joints = [leaf for leaf in self.leaves if isinstance(leaf, Joint)]
        self.bounded = any(x.box is not None for x in self.joints)
        self.name: str = operation.name

    @property
    def only(self) -> Joint:
        if len(self.joints) != 1:
            self.refuse(f"{len(self.joints)} of its arguments depend on the input, it has one for a single tensor")
        return self.joints[0]

    @property
    def first(self) -> Any:
        """The first argument, with its structure."""
        args, kwargs = self._arguments
        return args[0] if args else next(iter(kwargs.values()))

    def option(self, name: str) -> Any:
        """A keyword of this one call."""
        return self._arguments[1].get(name)

    def setting(self, name: str) -> float | None:
        """A number that the operation was made with."""
        value = getattr(self.operation, name)
        if value is not None and (np.ndim(value) or not np.isfinite(value)):
            self.refuse(f"{name}={value!r} is no finite number")
        return None if value is None else float(value)

    def refuse(self, hint: str) -> NoReturn:
        raise NoIntervalRuleError(self.name, type(self.operation).__name__, hint)

    def on(self, tensors: Sequence[tf.Tensor], **options: Any) -> Any:
        """The operation itself with these tensors in the places of the joints."""
        tensor = iter(tensors)
        leaves = [next(tensor) if isinstance(leaf, Joint) else leaf for leaf in self.leaves]
        args, kwargs = keras.tree.pack_sequence_as(self._arguments, leaves)
        return self.operation(*args, **{**kwargs, **options})

    def one(self, x: tf.Tensor) -> tf.Tensor:
        """The operation itself on one tensor."""
        return self.on([x])

    def plain(self) -> Any:
        """The operation on the values alone."""
        # A layer whose own call takes no mode still hands it on to the layers inside it.
        mode = {"training": self.walk.training} if isinstance(self.operation, keras.Layer) else {}
        value = self.on([x.value for x in self.joints], **mode)
        return keras.tree.map_structure(lambda v: Joint(v, None, self.name), value)

    def through(self, value: Callable[[tf.Tensor], tf.Tensor], box: Callable[[Box], Box]) -> Joint:
        """The only joint sent through a map of the value and a map of the box."""
        x = self.only
        result = value(x.value)
        return Joint(result, None if x.box is None else _in_precision(box(x.box), result), self.name)


Rule = Callable[[_Call], Any]


def _same(call: _Call) -> Joint:
    return replace(call.only, source=call.name)


def _monotone(call: _Call) -> Any:
    """Never decreasing in any of its tensors: the operation itself on each part."""
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return keras.tree.map_structure(lambda v: Joint(v, None, call.name), value)
    return keras.tree.map_structure(
        lambda v, lower, upper: Joint(v, Box(lower, upper), call.name),
        value,
        call.on([_lower(x) for x in call.joints]),
        call.on([_upper(x) for x in call.joints]),
    )


def _multilinear(call: _Call) -> Joint:
    """Affine in each of its tensors alone, so that the extremes lie at corners: products, and lines of either slope."""
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return Joint(value, None, call.name)
    corners = [call.on(corner) for corner in itertools.product(*(box_of(x) for x in call.joints))]
    box = Box(functools.reduce(tf.minimum, corners), functools.reduce(tf.maximum, corners))
    return Joint(value, box, call.name)


def _within_points(call: _Call) -> Any:
    """Along axes that must not be the one of the batch: a bound would hold for a point in the company of this batch only."""
    x, axis = call.only, call.operation.axis
    rank = len(x.value.shape)
    axes = range(rank) if axis is None else [place % rank for place in np.atleast_1d(axis).tolist()]
    if x.batch_axis in axes:
        call.refuse(f"axis={axis!r} mixes the points of a batch")
    return _monotone(call)


def _subtract(call: _Call) -> Joint:
    if len(call.joints) == 1:
        return _multilinear(call)
    value = call.on([x.value for x in call.joints])
    if not call.bounded:
        return Joint(value, None, call.name)
    minuend, subtrahend = map(box_of, call.joints)
    box = Box(call.on([minuend.lower, subtrahend.upper]), call.on([minuend.upper, subtrahend.lower]))
    return Joint(value, box, call.name)


def _divide(call: _Call) -> Joint:
    if len(call.joints) > 1 or not isinstance(call.leaves[0], Joint):
        call.refuse("the divisor depends on the input")
    return _multilinear(call)


def _power(call: _Call) -> Joint:
    exponent = call.leaves[1]
    if not isinstance(call.leaves[0], Joint) or isinstance(exponent, Joint) or not np.all(np.equal(exponent, 2)):
        call.refuse("of the powers only the square of a tensor has one")
    return _activate(call, call.one, 0.0, call.only)


def _interpolated(call: _Call) -> Any:
    if call.operation.interpolation not in ("nearest", "bilinear"):
        call.refuse(f"interpolation={call.operation.interpolation!r} has negative coefficients")
    return _monotone(call)


_PRECISIONS = ("float32", "float64")


def _change_precision(call: _Call) -> Any:
    if call.operation.dtype not in _PRECISIONS:
        call.refuse(f"bounds need float32 or float64 arithmetic, it casts to {call.operation.dtype}")
    return _monotone(call)


def _activate(call: _Call, f: Callable[[tf.Tensor], tf.Tensor], argmin: float | None, x: Joint) -> Joint:
    """An element-wise nonlinearity that never decreases (argmin None), or falls up to argmin and rises after it."""
    call.walk.enter(x)
    box = x.box
    if box is not None:
        box = intervals.monotone(f, box) if argmin is None else intervals.valley(ops, f, argmin, box)
        # TensorFlow's graph optimiser takes a maximum before the monotone function that it follows, and gets it wrong where
        # it does so for both ends: pooled upper bounds came out too low. It does not look behind this.
        box = Box(*tf.raw_ops.IdentityN(input=list(box)))
    return Joint(f(x.value), box, call.name)


def _nonlinearity(argmin: float | None = None) -> Rule:
    def rule(call: _Call) -> Joint:
        return _activate(call, call.one, argmin, call.only)

    return rule


def _sloped(attribute: str) -> Rule:
    """Rises on both sides of 0 if the slope on the negative one is not negative."""

    def rule(call: _Call) -> Any:
        slope = call.setting(attribute)
        if slope is not None and slope < 0:
            call.refuse(f"{attribute}={slope!r} makes it fall")
        return _activate(call, call.one, None, call.only)

    return rule


def _relu(call: _Call) -> Any:
    threshold, top, slope = map(call.setting, ("threshold", "max_value", "negative_slope"))
    if threshold:
        call.refuse(f"threshold={threshold!r} makes it jump")
    if top is not None and top < 0:
        call.refuse(f"max_value={top!r} makes it fall")
    if top is None and not slope:
        return _plain_relu(call)
    return _sloped("negative_slope")(call)


def _plain_relu(call: _Call) -> Joint:
    return _activate(call, call.walk.relu, None, call.only)


def _celu(call: _Call) -> Joint:
    alpha = call.setting("alpha")
    if alpha is None or alpha <= 0:
        call.refuse(f"alpha={alpha!r} makes it fall or divides by 0")
    return _activate(call, call.one, None, call.only)


def _squareplus(call: _Call) -> Joint:
    curvature = call.setting("b")
    if curvature is None or curvature < 0:
        call.refuse(f"b={curvature!r} makes it fall")
    return _activate(call, call.one, None, call.only)


def _prelu(call: _Call) -> Joint:
    """Two lines that meet at 0, of any slopes: the extremes lie at the ends, or at 0 where the box holds it."""
    x = call.only
    call.walk.enter(x)

    def bend(box: Box) -> Box:
        places = (box.lower, box.upper, tf.minimum(tf.maximum(0.0, box.lower), box.upper))
        ends = [call.one(place) for place in places]
        return Box(functools.reduce(tf.minimum, ends), functools.reduce(tf.maximum, ends))

    return call.through(call.one, bend)


def _gelu(call: _Call) -> Joint:
    argmin = intervals.GELU_TANH_ARGMIN if call.operation.approximate else intervals.GELU_ARGMIN
    return _activate(call, call.one, argmin, call.only)


Value = TypeVar("Value")


def _by_name(*rows: tuple[Value, str]) -> dict[str, Value]:
    """A table whose rows give one value to all the names behind it."""
    return {name: value for value, names in rows for name in names.split()}


HARD_SILU_ARGMIN = -1.5
# Functions that a layer may carry as its activation: the place of their only minimum, None where they never decrease.
_FUNCTIONS: dict[str, float | None] = _by_name(
    (None, "relu relu6 leaky_relu elu selu celu sigmoid tanh softplus softsign exponential exp log_sigmoid hard_sigmoid"),
    (None, "hard_tanh hard_shrink soft_shrink tanh_shrink squareplus sparse_plus sparse_sigmoid"),
    (intervals.GELU_ARGMIN, "gelu"),
    (intervals.SILU_ARGMIN, "silu"),
    (intervals.MISH_ARGMIN, "mish"),
    (HARD_SILU_ARGMIN, "hard_silu"),
    (0.0, "abs square"),
)
_MODULES = (keras.activations, keras.ops, tf.nn, tf.math)
_ARGMIN: dict[int, float | None] = {
    id(getattr(module, name)): argmin for name, argmin in _FUNCTIONS.items() for module in _MODULES if name in dir(module)
} | {id(keras.ops.gelu): intervals.GELU_TANH_ARGMIN}  # the only one of the three whose default is the approximation
_PLAIN_RELUS = tuple(id(module.relu) for module in (keras.activations, keras.ops, tf.nn))
NO_GRAPH = "a subclassed model has no graph of operations to follow"
_HINTS: dict[str, str] = {
    **dict.fromkeys(["Softmax", "LogSoftmax", "Sparsemax"], FINAL_SOFTMAX),
    **dict.fromkeys(["softmax", "softmax_v2", "log_softmax", "log_softmax_v2", "sparsemax"], FINAL_SOFTMAX),
}


def _apply_activation(call: _Call, f: Any, x: Joint) -> Any:
    """The `activation` argument of a layer."""
    if f is None or f is keras.activations.linear:
        return replace(x, source=call.name)
    if isinstance(f, keras.Layer):
        return call.walk.call(f, (x,), {})
    if id(f) not in _ARGMIN:
        name = getattr(f, "__name__", type(f).__name__)
        raise NoIntervalRuleError(call.name, f"activation {name!r}", _HINTS.get(name, ""))
    call.walk.run(f.__name__, 1)
    return _activate(call, call.walk.relu if id(f) in _PLAIN_RELUS else f, _ARGMIN[id(f)], x)


def _activation(call: _Call) -> Any:
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
    return Joint(value, Box(*_ends(signed(centre), radius)), source)


def _bias(layer: Any) -> Any:
    if layer.bias is None:
        return None
    bias = tf.convert_to_tensor(layer.bias)
    if getattr(layer, "data_format", None) == "channels_first":
        return tf.reshape(bias, (1, -1) + (1,) * layer.rank)
    return bias


def _layer(linear: Linear) -> Rule:
    """A layer with `kernel`, `bias` and `activation`."""

    def rule(call: _Call) -> Any:
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


def _separable(call: _Call) -> Any:
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


def _batch_norm(call: _Call) -> Joint:
    """Batch norm with the statistics of the data for data and box alike, so that it is one affine map."""
    layer, x = call.operation, call.only
    by_batch = call.walk.training and layer.trainable
    value = call.on([x.value], training=call.walk.training)
    if x.box is None:
        return Joint(value, None, call.name)
    if not by_batch:
        ends = [call.on([end], training=False) for end in x.box]
        return Joint(value, Box(tf.minimum(*ends), tf.maximum(*ends)), call.name)
    if getattr(layer, "renorm", False):
        call.refuse("renorm=True has none in training")
    if call.option("mask") is not None:
        call.refuse("statistics under a mask have none in training")
    shape = _along([layer.axis], x.value)
    axes = [axis for axis, length in enumerate(shape) if axis != layer.axis % len(shape)]
    # Over all replicas of a tf.distribute strategy where the layer does so.
    mean, variance = keras.ops.moments(x.value, axes, synchronized=True) if layer.synchronized else tf.nn.moments(x.value, axes)
    factor = tf.math.rsqrt(variance + layer.epsilon)
    factor = factor * layer.gamma if layer.scale else factor
    shift = (tf.convert_to_tensor(layer.beta) if layer.center else 0.0) - mean * factor
    return Joint(value, _in_precision(_gain(x.box, factor, shift, shape), value), call.name)


def _layer_norm(call: _Call) -> Joint:
    layer = call.operation
    if layer.rms_scaling:
        call.refuse("rms_scaling=True has none")
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)

    def bound(box: Box) -> Box:
        shape = _along(axes, box.lower)

        def mean(t: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(t, axes, keepdims=True)

        box = intervals.standardise(ops, box, mean, int(np.prod(shape)), layer.epsilon)
        return _gain(box, layer.gamma, layer.beta, shape)

    return call.through(call.one, bound)


def _group_norm(call: _Call) -> Joint:
    layer = call.operation

    def bound(box: Box) -> Box:
        shape = list(box.lower.shape)
        if None in shape[1:]:
            call.refuse("the length of an axis that it averages over is not known")
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


def _dropout(call: _Call) -> Joint:
    if not call.walk.training:
        return _same(call)
    mask = call.on([tf.ones_like(call.only.value)], training=True)
    return call.through(lambda t: t * mask, lambda box: intervals.scale(ops, box, mask))


def _gaussian_noise(call: _Call) -> Joint:
    if not call.walk.training:
        return _same(call)
    noise = call.on([tf.zeros_like(call.only.value)], training=True)
    return call.through(lambda t: t + noise, lambda box: Box(box.lower + noise, box.upper + noise))


_SELU_FLOOR = -1.0507009873554805 * 1.6732632423543772


def _alpha_dropout(call: _Call) -> Joint:
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
_LAYERS: dict[str, Rule] = _by_name(
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
    (_monotone, "Add Average Maximum Minimum Concatenate"),
    (_monotone, "Flatten Reshape Permute RepeatVector Cropping1D Cropping2D Cropping3D"),
    (_monotone, "ZeroPadding1D ZeroPadding2D ZeroPadding3D UpSampling1D UpSampling3D Normalization"),
    (_interpolated, "UpSampling2D"),
    (_subtract, "Subtract"),
    (_multilinear, "Multiply Rescaling"),
    (_dropout, "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout"),
    (_gaussian_noise, "GaussianNoise"),
    (_alpha_dropout, "AlphaDropout"),
    (_same, "ActivityRegularization Identity"),
)
# What Keras records of `keras.ops`, `keras.activations` and the operators of symbolic tensors, by class name.
_OPERATIONS: dict[str, Rule] = _by_name(
    (_monotone, "Add Maximum Minimum Clip MaxPool AveragePool AdaptiveMaxPool AdaptiveAveragePool"),
    (_monotone, "Reshape Ravel Transpose Swapaxes Moveaxis Squeeze ExpandDims BroadcastTo DepthToSpace SpaceToDepth"),
    (_monotone, "Concatenate Stack Hstack Vstack Split Unstack GetItem Pad Repeat Tile Copy StopGradient"),
    (_within_points, "Mean Sum Max Min Amax Amin Logsumexp Flip Roll"),
    (_subtract, "Subtract"),
    (_multilinear, "Multiply Negative"),
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
# Where an instance may carry code in place of that of its class.
_CODE = ("call", "__call__", "convolution_op", "quantized_call")


def _check_call(call: _Call) -> None:
    """What no rule was made for, whatever the operation."""
    replaced = [name for name in _CODE if name in vars(call.operation)]
    if replaced:
        call.refuse(f"its `{replaced[0]}` was replaced by other code than that of {type(call.operation).__name__}")
    training = call.option("training")
    if isinstance(training, Joint) or (training is not None and training):
        call.refuse(
            "it is called with training=True, so that a prediction is random or depends on the other points of its batch"
        )
    if any(isinstance(leaf, Joint) for leaf in keras.tree.flatten(call.option("mask"))):
        call.refuse("its mask depends on the input")
    for x in call.joints:
        if x.box is not None and x.value.dtype not in _PRECISIONS:
            call.refuse(f"bounds need float32 or float64 arithmetic, {x.source!r} gives {x.value.dtype.name}")


def _rule(call: _Call) -> Rule:
    operation, rule = call.operation, None
    name = type(operation).__name__
    if isinstance(operation, keras.Model):
        call.refuse("a model that is called with a mask has none" if has_graph(operation) else NO_GRAPH)
    if isinstance(operation, keras.Layer):
        if operation.compute_dtype not in _PRECISIONS:
            call.refuse(f"bounds need float32 or float64 arithmetic, it computes in {operation.compute_dtype}")
        if getattr(operation, "quantization_mode", None) is not None:
            call.refuse(f"its weights are quantized ({operation.quantization_mode})")
        if getattr(keras.layers, name, None) is type(operation):
            rule = _LAYERS.get(name)
    elif type(operation).__module__.startswith("keras."):
        rule = _OPERATIONS.get(name)
    if rule is None:
        call.refuse(_HINTS.get(name, ""))
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
    """

    def __init__(self, *, training: bool, relu: Callable[[tf.Tensor], tf.Tensor] = tf.nn.relu) -> None:
        self.training = training
        self.relu = relu
        self.losses: list[tf.Tensor] = []  # what activity regularizers and `add_loss` of the layers made of the values
        self.curved: str | None = None  # the first operation that bends
        self._entered: list[Joint] = []

    def run(self, operation: str, operands: int) -> None:
        """Note that an operation runs, and how many of its arguments depend on the input."""
        if self.curved is None and bends(operation, operands):
            self.curved = operation

    def enter(self, x: Joint) -> None:
        """Remember a tensor that enters a nonlinearity."""
        if all(x is not seen for seen in self._entered):
            self._entered.append(x)

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
            result = self._model(_Call(self, operation, args, kwargs))
            self.losses += _activity_losses(operation, result)
            return result
        call = _Call(self, operation, *_cast(operation, args, kwargs))
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

    def _model(self, call: _Call) -> Any:
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


def _as_inputs(call: _Call) -> list[Joint]:
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
        call.refuse(f"one of its {len(expected)} inputs does not depend on the input of the network, or not under its name")
    return [_as_input(call, x, like) for x, like in zip(joints, expected, strict=True)]


def _as_input(call: _Call, x: Joint, like: Any) -> Joint:
    if isinstance(like, Joint):
        return like
    if call.bounded and like.dtype not in _PRECISIONS:
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
    return replace(x, value=adjust(x.value), box=None if x.box is None else Box(*map(adjust, x.box)))


def _cast(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments in the precision that a layer computes in, as Keras casts them."""
    if not isinstance(operation, keras.Layer) or not operation.autocast:
        return args, kwargs
    dtype = operation.compute_dtype

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Joint) or leaf.value.dtype == dtype or not leaf.value.dtype.is_floating:
            return leaf
        box = None if leaf.box is None else Box(*(tf.cast(end, dtype) for end in leaf.box))
        return replace(leaf, value=tf.cast(leaf.value, dtype), box=box)

    args, kwargs = keras.tree.map_structure(cast, (args, kwargs))
    return args, kwargs


@tf.custom_gradient
def straight_relu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """ReLU whose gradient does not depend on x: TensorFlow's sends the zeros of its curvature through the network."""
    y = tf.nn.relu(x)
    return y, lambda upstream: tf.raw_ops.ReluGrad(gradients=upstream, features=tf.stop_gradient(y))

"""TensorFlow: backward linear bounds in the pass that carries boxes.

A tape watches the values that travel with the boxes. Behind each nonlinearity its gradient leads to the lines that bound it in
place of the nonlinearity itself, so that an ordinary gradient is a linear bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from art_entropic import linear_bounds
from art_entropic.backends.protocol import Relaxation
from art_entropic.backends.tensorflow.joint import Call, Joint, box_of
from art_entropic.backends.tensorflow.ops import ops
from art_entropic.backends.tensorflow.walk import Walk, has_graph
from art_entropic.linear_bounds import CURVES, Ball, Curve, Lines, Plane
from art_entropic.ops import Array, Box

# Affine in all that depends on the input; what a layer applies as its activation is bounded apart.
_AFFINE_NAMES = """
    Dense EinsumDense Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    SeparableConv1D SeparableConv2D BatchNormalization Activation AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D Add Average Concatenate Flatten Reshape Permute RepeatVector Cropping1D Cropping2D Cropping3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D UpSampling1D UpSampling2D UpSampling3D Normalization Subtract Rescaling Dropout
    SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization
    Identity AveragePool AdaptiveAveragePool Ravel Transpose Swapaxes Moveaxis Squeeze ExpandDims BroadcastTo DepthToSpace
    SpaceToDepth Stack Hstack Vstack Split Unstack GetItem Pad Repeat Tile Copy Mean Sum Flip Roll Negative Divide TrueDivide
    Cast
"""
# Convex in all that depends on the input.
_CONVEX_NAMES = """
    MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D AdaptiveMaxPooling1D
    AdaptiveMaxPooling2D AdaptiveMaxPooling3D MaxPool AdaptiveMaxPool Max Amax Logsumexp Maximum
"""
_AFFINE, _CONVEX = frozenset(_AFFINE_NAMES.split()), frozenset(_CONVEX_NAMES.split())
# Made of straight pieces that meet here.
_KINKS: dict[str, tuple[float, ...]] = {
    "abs": (0.0,),
    "absolute": (0.0,),
    "relu6": (0.0, 6.0),
    "hardsigmoid": (-3.0, 3.0),
    "hardtanh": (-1.0, 1.0),
}
_LEAKY = ("relu", "leakyrelu")
_SAME = {"swish": "silu", "hardsilu": "hardswish", "power": "square"}


@tf.custom_gradient
def _between(value: tf.Tensor, below: tf.Tensor, above: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
    """A value whose backward pass sends positive coefficients to what lies below it, negative ones to what lies above."""

    def gradient(coefficients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tf.zeros_like(coefficients), tf.maximum(coefficients, 0.0), tf.minimum(coefficients, 0.0)

    return tf.identity(value), gradient


class RelaxingWalk(Walk):
    """A walk on which every nonlinearity is bounded by lines.

    Args:
        tape: persistent; it watches `x` and `one`.
        x: (n, ...), raw inputs, which the values depend on.
        relaxation: which lines there are.
        ball: of the inputs, that boxes are cut by.
    """

    def __init__(self, tape: tf.GradientTape, x: tf.Tensor, relaxation: Relaxation, ball: Ball, copies: int) -> None:
        super().__init__(training=False)
        self.tape, self.x, self.relaxation, self._ball = tape, x, relaxation, ball
        self._copies = copies
        self.one = tf.ones(len(x), x.dtype)
        tape.watch(self.one)
        self.leading: set[int] = set()
        self.elements = 0
        self.work = np.zeros(len(x))
        self._multiplications = 0.0
        self._bound: list[Joint] = []  # what has its lines already

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call(operation, args, kwargs)
        if has_graph(operation):
            return result
        name, call = type(operation).__name__, Call(self, operation, args, kwargs)
        exact = name in _AFFINE or (name == "Multiply" and len(call.joints) == 1)
        return keras.tree.map_structure(lambda one: self._after(name, call, one, exact), result)

    def _after(self, name: str, call: Call, result: Joint, exact: bool) -> Joint:
        self.elements += int(tf.size(result.value))
        if any(result is known for known in self._bound):
            return result
        if exact:
            self._count(call, result)
            return result
        box = Box(*map(tf.stop_gradient, box_of(result)))
        ends = box
        if self.relaxation != "boxes" and name in _CONVEX:
            ends = Box(result.value, box.upper)
        elif self.relaxation != "boxes" and name == "Multiply" and len(call.joints) == 2:
            ends = self._product(result.value.shape, *call.joints)
        return self._known(replace(result, value=self._sent(result.value, *ends), box=box))

    def _count(self, call: Call, result: Joint) -> None:
        kernel = getattr(call.operation, "kernel", None)
        self._multiplications += int(tf.size(result.value)) / len(self.x) * (1 if kernel is None else _fan_in(kernel))

    def _product(self, shape: Any, left: Joint, right: Joint) -> Box:
        with self.tape.stop_recording():
            planes = linear_bounds.product(*(Box(*(tf.broadcast_to(end, shape) for end in box_of(x))) for x in (left, right)))
        slanted = planes.slope * left.value + planes.other_slope * right.value
        return Box(slanted + planes.offsets[0], slanted + planes.offsets[1])

    def _known(self, joint: Joint) -> Joint:
        self._bound.append(joint)
        return joint

    def _sent(self, value: tf.Tensor, below: tf.Tensor, above: tf.Tensor) -> tf.Tensor:
        value = tf.stop_gradient(value)
        one = self._one_like(value)
        return _between(value, *(end + tf.stop_gradient(value - end) * one for end in (below, above)))

    def _one_like(self, value: tf.Tensor) -> tf.Tensor:
        """1 for each example, in the shape of a tensor whose first axis tells them apart."""
        n, rank = len(self.x), len(value.shape)
        one = tf.cast(self.one, value.dtype)
        if n > 1 and rank:
            self.leading.add(int(value.shape[0]))
        if rank and value.shape[0] == n:
            return tf.reshape(one, [n] + [1] * (rank - 1))
        return tf.reduce_sum(one) / n

    def activated(self, call: Call, f: Callable[[tf.Tensor], tf.Tensor], x: Joint, bound: Callable[[Joint], Joint]) -> Joint:
        # Of a layer that carries its activation: what is affine in it, before the units that it makes are counted.
        self._count(call, x)
        lines_on = None if self.relaxation == "boxes" else _lines_of(call, f, self.relu)
        with self.tape.stop_recording():
            x = replace(x, box=Box(*map(tf.stop_gradient, box_of(x))))
            lines = None
            if lines_on is not None:
                x, lines = self._tightened(x, lines_on)
            result = bound(x)
        ends = box_of(result) if lines is None else Box(lines.below.at(x.value), lines.above.at(x.value))
        return self._known(replace(result, value=self._sent(result.value, *ends)))

    def _tightened(self, z: Joint, lines_on: Callable[[Box], Lines]) -> tuple[Joint, Lines]:
        """Lines on the box of what enters a nonlinearity, which is made smaller first where that is wanted."""
        box, n = box_of(z), len(self.x)
        lines = lines_on(box)
        # The first affine layers have exact boxes.
        if not self._bound or z.value.shape[0] != n:
            return z, lines
        wide = linear_bounds.wide_units(ops, lines, box).numpy() > 0
        # Two passes forward and back for each unit, once for its lower end and once for its upper one.
        self.work += wide.sum(axis=1) * 4.0 * self._multiplications
        if self.relaxation != "tightened" or not wide.any():
            return z, lines
        flat = Box(*(end.numpy().reshape(n, -1) for end in box))
        value = z.value.numpy().reshape(n, -1)
        found = linear_bounds.cut(flat, value, wide, lambda c: self.below(z.value, c), self._ball, self._copies)
        box = Box(*(tf.reshape(tf.cast(end, z.value.dtype), z.value.shape) for end in found))
        return replace(z, box=box), lines_on(box)

    def below(self, z: tf.Tensor, coefficients: Array) -> Plane:
        """A linear bound of sum(coefficients * z) of each example."""
        n = len(self.x)
        gradient, gap = self.tape.gradient(
            z,
            [self.x, self.one],
            output_gradients=tf.reshape(tf.cast(coefficients, z.dtype), z.shape),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        terms = coefficients * _double(z).reshape(n, -1)
        return Plane(terms.sum(axis=1), np.abs(terms).sum(axis=1), _double(gap), _double(gradient).reshape(n, -1))


def _fan_in(kernel: Any) -> float:
    return float(np.prod(kernel.shape)) / int(kernel.shape[-1])


def _double(x: tf.Tensor) -> Array:
    array: Array = x.numpy().astype(np.float64)
    return array


def _lines_of(
    call: Call, f: Callable[[tf.Tensor], tf.Tensor], relu: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[Box], Lines] | None:
    """Lines of an element-wise nonlinearity; None where none were proved for it and its settings."""
    if f is relu:
        return lambda box: linear_bounds.two_pieces(ops, box)
    operation = call.operation
    own = f == call.one
    name = (type(operation).__name__ if own else f.__name__).replace("_", "").lower()
    name = _SAME.get(name, name)
    curve = CURVES.get(name)
    if name in _LEAKY and own:
        top = getattr(operation, "max_value", None)
        curve = Curve(kinks=(0.0,) if top is None else (0.0, float(top)))
    elif name in ("leakyrelu", "prelu"):
        curve = Curve(kinks=(0.0,))
    elif name in ("elu", "celu"):
        usual = not own or getattr(operation, "alpha", 1.0) == 1.0
        curve = CURVES["elu"] if usual else None
    elif name in _KINKS:
        curve = Curve(kinks=_KINKS[name])
    elif name == "gelu":
        curve = CURVES["gelu_tanh" if (operation.approximate if own else f is keras.ops.gelu) else "gelu"]
    return None if curve is None else lambda box: linear_bounds.curved(ops, f, box, curve)


class TensorFlowRelaxed:
    """`Relaxed` of a Keras model."""

    def __init__(self, walk: RelaxingWalk, logits: Joint) -> None:
        self._walk, self._logits = walk, logits.value
        self.logits, self.box = _double(logits.value), Box(*map(_double, box_of(logits)))
        self.leading, self.elements, self.work = frozenset(walk.leading), walk.elements, walk.work

    def below(self, v: Array) -> Plane:
        return self._walk.below(self._logits, np.asarray(v))

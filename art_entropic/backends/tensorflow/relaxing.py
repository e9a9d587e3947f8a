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

LinesOn = Callable[[Box], Lines]
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


class RelaxingWalk(Walk):
    """A walk on which every nonlinearity is bounded by lines, so that one backward pass gives a linear bound.

    Values keep the gradients that they have in the model, and boxes theirs: the bounds are differentiable.

    Args:
        tape: persistent, and within those that differentiate the bounds; it watches `x` and `one`.
        x: (n, ...), raw inputs that the values depend on and their boxes do not.
        relaxation: which lines there are.
    """

    def __init__(
        self, tape: tf.GradientTape, x: tf.Tensor, relaxation: Relaxation = "lines", *, training: bool = False
    ) -> None:
        super().__init__(training=training)
        self.tape, self.x, self.relaxation = tape, x, relaxation
        self.bounding = False
        self.one = tf.ones(tf.shape(x)[:1], x.dtype)
        tape.watch(self.one)
        self.leading: set[int] = set()
        self._bound: list[Joint] = []  # what has its lines already

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call(operation, args, kwargs)
        if has_graph(operation):
            return result
        name, call = type(operation).__name__, Call(self, operation, args, kwargs)
        exact = name in _AFFINE or (name == "Multiply" and len(call.joints) == 1)
        return keras.tree.map_structure(lambda one: self._after(name, call, one, exact), result)

    def _after(self, name: str, call: Call, result: Joint, exact: bool) -> Joint:
        bound = any(result is known for known in self._bound)
        self.passed(call, result, exact and not bound)
        if bound or exact:
            return result
        ends = self.box_aside(result)
        if self.relaxation != "boxes" and name in _CONVEX:
            ends = Box(result.value, ends.upper)
        elif self.relaxation != "boxes" and name == "Multiply" and len(call.joints) == 2:
            ends = self._product(tf.shape(result.value), *call.joints)
        return self._known(replace(result, value=self._between(result.value, *ends), box=self.kept(result)))

    def passed(self, call: Call, result: Joint, exact: bool) -> None:
        """A result, before its lines."""

    def kept(self, result: Joint) -> Box:
        """The box that goes on."""
        return box_of(result)

    def aside(self, x: tf.Tensor) -> tf.Tensor:
        """What the pass for bounds takes as constant, and any other one does not."""

        @tf.custom_gradient
        def same(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
            return tf.identity(x), lambda gradient: None if self.bounding else gradient

        return same(x)

    def box_aside(self, x: Joint) -> Box:
        return Box(*map(self.aside, box_of(x)))

    def standardised(self, result: tf.Tensor, x: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """An affine map all the same, though its coefficients depend on the batch."""

        @tf.custom_gradient
        def instead(value: tf.Tensor, equal: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
            return tf.identity(value), lambda g: (None, g) if self.bounding else (g, None)

        return instead(result, x * self.aside(gain) + self.aside(shift))

    def _product(self, shape: Any, left: Joint, right: Joint) -> Box:
        planes = linear_bounds.product(
            *(Box(*(tf.broadcast_to(end, shape) for end in self.box_aside(x))) for x in (left, right))
        )
        slanted = planes.slope * left.value + planes.other_slope * right.value
        return Box(slanted + planes.offsets[0], slanted + planes.offsets[1])

    def _known(self, joint: Joint) -> Joint:
        self._bound.append(joint)
        return joint

    def _between(self, value: tf.Tensor, below: tf.Tensor, above: tf.Tensor) -> tf.Tensor:
        """A value through which the pass for bounds sends positive coefficients below it, negative ones above it."""

        @tf.custom_gradient
        def between(
            value: tf.Tensor, one: tf.Tensor, below: tf.Tensor, above: tf.Tensor
        ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
            def gradient(coefficients: tf.Tensor) -> Any:
                if not self.bounding:
                    return coefficients, None, None, None
                positive, negative = tf.maximum(coefficients, 0.0), tf.minimum(coefficients, 0.0)
                return None, _summed(positive * (value - below) + negative * (value - above), one), positive, negative

            return tf.identity(value), gradient

        return between(value, self._one_like(value), below, above)

    def _lined(self, value: tf.Tensor, z: tf.Tensor, lines: Lines) -> tf.Tensor:
        """`_between` lines at z, in fewer passes over memory."""

        @tf.custom_gradient
        def lined(
            value: tf.Tensor, z: tf.Tensor, one: tf.Tensor, *ends: tf.Tensor
        ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
            def gradient(coefficients: tf.Tensor) -> Any:
                if not self.bounding:
                    return coefficients, *[None] * 6
                positive = coefficients > 0
                slope, offset = tf.where(positive, ends[0], ends[2]), tf.where(positive, ends[1], ends[3])
                gap = coefficients * (value - slope * z - offset)
                return None, coefficients * slope, _summed(gap, one), *[None] * 4

            return tf.identity(value), gradient

        return lined(value, z, self._one_like(value), *lines.below, *lines.above)

    def _one_like(self, value: tf.Tensor) -> tf.Tensor:
        """1 for each example, in the shape of a tensor whose first axis tells them apart."""
        n, rank = self.x.shape[0], len(value.shape)
        one = tf.cast(self.one, value.dtype)
        if n != 1 and rank and value.shape[0] is not None:
            self.leading.add(int(value.shape[0]))
        if rank and value.shape[0] == n:
            # Where nobody knows n yet, an axis may be folded into that of the batch.
            one = tf.repeat(one, tf.shape(value)[0] // tf.shape(one)[0]) if n is None else one
            return tf.reshape(one, [-1] + [1] * (rank - 1))
        return tf.reduce_mean(one)

    def activated(self, call: Call, f: Callable[[tf.Tensor], tf.Tensor], x: Joint, bound: Callable[[Joint], Joint]) -> Joint:
        lines_on = None if self.relaxation == "boxes" else _lines_of(call, f, self.relu)
        x, lines, result = self.entered(call, x, lines_on, bound)
        if lines is None:
            return self._known(replace(result, value=self._between(result.value, *self.box_aside(result))))
        return self._known(replace(result, value=self._lined(result.value, x.value, lines)))

    def entered(
        self, call: Call, x: Joint, lines_on: LinesOn | None, bound: Callable[[Joint], Joint]
    ) -> tuple[Joint, Lines | None, Joint]:
        """What enters a nonlinearity, its lines, and what comes out."""
        return x, None if lines_on is None else lines_on(self.box_aside(x)), bound(x)

    def bound(self, z: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`LinearBound` of z (n, m)."""
        gradient, gap = self.coefficients(z, upstream)
        return tf.reduce_sum(upstream * z, axis=1) - gap, gradient

    def coefficients(self, z: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Of a linear bound of sum(upstream * z): its gradient in x, and its gap at x, (n,)."""
        self.bounding = True
        try:
            gradient, gap = self.tape.gradient(
                z,
                [self.x, self.one],
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        finally:
            self.bounding = False
        return gradient, gap


class CertifyingWalk(RelaxingWalk):
    """Bounds of a model whose weights are fixed.

    Args:
        ball: of the inputs, that boxes are cut by.
        copies: so many points, one behind the other, are the same one.
    """

    def __init__(self, tape: tf.GradientTape, x: tf.Tensor, relaxation: Relaxation, ball: Ball, copies: int) -> None:
        super().__init__(tape, x, relaxation)
        self._ball, self._copies = ball, copies
        self.elements = 0
        self.work = np.zeros(len(x))
        self._multiplications = 0.0

    def passed(self, call: Call, result: Joint, exact: bool) -> None:
        self.elements += int(tf.size(result.value))
        if exact:
            self._count(call, result)

    def kept(self, result: Joint) -> Box:
        return self.box_aside(result)

    def aside(self, x: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(x)

    def _count(self, call: Call, result: Joint) -> None:
        kernel = getattr(call.operation, "kernel", None)
        self._multiplications += int(tf.size(result.value)) / len(self.x) * (1 if kernel is None else _fan_in(kernel))

    def entered(
        self, call: Call, x: Joint, lines_on: LinesOn | None, bound: Callable[[Joint], Joint]
    ) -> tuple[Joint, Lines | None, Joint]:
        # Of a layer that carries its activation: what is affine in it, before the units that it makes are counted.
        self._count(call, x)
        with self.tape.stop_recording():
            x = replace(x, box=self.box_aside(x))
            if lines_on is None:
                return x, None, bound(x)
            x, lines = self._tightened(x, lines_on)
            return x, lines, bound(x)

    def _tightened(self, z: Joint, lines_on: LinesOn) -> tuple[Joint, Lines]:
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
        gradient, gap = self.coefficients(z, tf.reshape(tf.cast(coefficients, z.dtype), z.shape))
        terms = coefficients * _double(z).reshape(n, -1)
        return Plane(terms.sum(axis=1), np.abs(terms).sum(axis=1), _double(gap), _double(gradient).reshape(n, -1))


def _summed(x: tf.Tensor, one: tf.Tensor) -> tf.Tensor:
    """A number for each example where `one` has one for each, else one for all."""
    return tf.reduce_sum(x, axis=list(range(1, len(x.shape))), keepdims=True) if len(one.shape) else tf.reduce_sum(x)


def _fan_in(kernel: Any) -> float:
    return float(np.prod(kernel.shape)) / int(kernel.shape[-1])


def _double(x: tf.Tensor) -> Array:
    array: Array = x.numpy().astype(np.float64)
    return array


def _lines_of(call: Call, f: Callable[[tf.Tensor], tf.Tensor], relu: Callable[[tf.Tensor], tf.Tensor]) -> LinesOn | None:
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

    def __init__(self, walk: CertifyingWalk, logits: Joint) -> None:
        self._walk, self._logits = walk, logits.value
        self.logits, self.box = _double(logits.value), Box(*map(_double, box_of(logits)))
        self.leading, self.elements, self.work = frozenset(walk.leading), walk.elements, walk.work

    def below(self, v: Array) -> Plane:
        return self._walk.below(self._logits, np.asarray(v))

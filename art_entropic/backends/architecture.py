"""Networks described as data, so that every framework builds the same one from the same initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Activation = Literal["relu", "silu", "gelu"]  # GELU is the exact one, x Phi(x)
Shape = tuple[int, ...]  # of one point, without the batch, channels last

# Of batch normalisation: what each batch leaves of the moving averages (PyTorch calls 1 minus this its momentum).
NORM_MOMENTUM, NORM_EPSILON = 0.9, 1e-5


@dataclass(frozen=True)
class Conv:
    """Convolution with a kernel and a zero padding of one length along every axis, then the activation.

    It is 2-D on images (height, width, channels), 1-D on (time, bands). With `batch_norm`, a batch normalisation with scale 1
    and shift 0 stands between the two. Its moving averages are not quite the same in training: PyTorch's takes the unbiased
    variance of a batch, Keras's the biased one.
    """

    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    activation: Activation | None = "relu"
    batch_norm: bool = False


@dataclass(frozen=True)
class Residual:
    """The basic block: two 3x3 convolutions with batch normalisation, added to the input, then the activation.

    Where the shape changes, the input passes a strided 1x1 convolution with batch normalisation on its way.

    Source: He et al. 2016, arXiv 1512.03385, Fig. 5 and option B.
    """

    filters: int
    stride: int = 1
    activation: Activation = "relu"

    @property
    def body(self) -> tuple[Conv, Conv]:
        first = Conv(self.filters, 3, self.stride, 1, self.activation, batch_norm=True)
        return first, Conv(self.filters, 3, 1, 1, None, batch_norm=True)

    def shortcut(self, shape: Shape) -> Conv | None:
        """What an input of that shape passes; None where it stays as it is."""
        if self.stride == 1 and shape[-1] == self.filters:
            return None
        return Conv(self.filters, 1, self.stride, 0, None, batch_norm=True)


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over non-overlapping square windows."""

    size: int = 2


@dataclass(frozen=True)
class GlobalAverage:
    """The mean of each channel over all other axes."""


@dataclass(frozen=True)
class Flatten:
    """Everything but the batch into one axis, in (height, width, channel) order in every framework."""


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, then the activation; the last one of a network has none and yields logits."""

    units: int
    activation: Activation | None = "relu"


Layer = Conv | Residual | MaxPool | GlobalAverage | Flatten | Dense
Architecture = tuple[Layer, ...]


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """The shape that a layer makes of another one.

    >>> shape_after(Conv(16, 3, stride=2, padding=1), (32, 32, 3)), shape_after(Residual(64, 2), (16, 16, 32))
    ((16, 16, 16), (8, 8, 64))
    """
    match layer:
        case Conv():
            return (*((n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in shape[:-1]), layer.filters)
        case Residual():
            return shape_after(layer.body[0], shape)
        case MaxPool():
            return (*(n // layer.size for n in shape[:-1]), shape[-1])
        case GlobalAverage():
            return shape[-1:]
        case Flatten():
            return (math.prod(shape),)
        case Dense():
            if len(shape) != 1:
                raise ValueError(f"a Dense layer needs a Flatten or a GlobalAverage before it, got inputs of shape {shape}")
            return (layer.units,)


def with_shapes(architecture: Architecture, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """The layers, each with the shape that enters it."""
    shape = input_shape
    for layer in architecture:
        yield layer, shape
        shape = shape_after(layer, shape)


def initial_weights(architecture: Architecture, input_shape: Shape, seed: int) -> list[np.ndarray]:
    """The initial weights of a network, float32, in the order of Keras.

    Kernels are He-uniform and biases zero; a batch normalisation has scale 1, shift 0, moving mean 0 and moving variance 1.

    Args:
        input_shape: of one point, channels last.
        seed: of NumPy's generator: the same in every framework.
    Returns:
        Kernel (k, ..., in, out) and bias of each Conv, with scale, shift, mean and variance of its batch normalisation behind
        them; those of a Residual's convolutions, the second one's `beside` the shortcut's; kernel (in, out) and bias of each
        Dense.
    Source: He et al. 2015, arXiv 1502.01852, eq. (10), uniform form.
    """
    rng = np.random.default_rng(seed)
    return [array for layer, shape in with_shapes(architecture, input_shape) for array in _weights(layer, shape, rng)]


def _weights(layer: Layer, shape: Shape, rng: np.random.Generator) -> list[np.ndarray]:
    match layer:
        case Conv():
            kernel = (*[layer.kernel] * (len(shape) - 1), shape[-1], layer.filters)
            return [*_he_uniform(kernel, rng), *(_norm(layer.filters) if layer.batch_norm else [])]
        case Residual():
            first, second = layer.body
            shortcut = layer.shortcut(shape)
            found, inner = _weights(first, shape, rng), _weights(second, shape_after(first, shape), rng)
            return found + (inner if shortcut is None else beside(inner, _weights(shortcut, shape, rng)))
        case Dense():
            return _he_uniform((*shape, layer.units), rng)
    return []


def beside(one: list[np.ndarray], other: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays of two convolutions with batch normalisation in the order of Keras, which goes through a graph by depth.

    Both kernels and biases come before both batch normalisations.
    """
    return [*one[:2], *other[:2], *one[2:], *other[2:]]


def _he_uniform(shape: Shape, rng: np.random.Generator) -> list[np.ndarray]:
    bound = np.sqrt(6.0 / np.prod(shape[:-1]))
    return [rng.uniform(-bound, bound, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]


def _norm(channels: int) -> list[np.ndarray]:
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return [ones, zeros, zeros, ones]

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


@dataclass(frozen=True)
class OneHot:
    """Takes features from number `first` on, which are 0 or 1, as what they are nearest to: clip(2 x - 1/2, 0, 1).

    What lies within 1/4 of 0 or 1 is 0 or 1 to the layers behind, with derivative 0. So an Linf adversary of a smaller radius
    cannot move such a feature, whatever trains, attacks or bounds the network.
    """

    first: int


@dataclass(frozen=True)
class Patches:
    """Square patches of an image as tokens (tokens, width): a linear map of each, and a learned vector of its position.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, eq. (1), without a class token.
    """

    size: int
    width: int

    @property
    def embedding(self) -> Conv:
        return Conv(self.width, self.size, self.size, 0, None)


@dataclass(frozen=True)
class Encoder:
    """A transformer's encoder block with normalisation first: x + attention(norm(x)), then x + mlp(norm(x)) with GELU.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, eq. (2) and (3).
    """

    heads: int
    hidden: int


@dataclass(frozen=True)
class TokenMean:
    """Layer normalisation, then the mean over the tokens."""


Layer = Conv | Residual | MaxPool | GlobalAverage | Flatten | Dense | OneHot | Patches | Encoder | TokenMean
Architecture = tuple[Layer, ...]


def normalises_by_batch(architecture: Architecture) -> bool:
    """Whether a network has batch normalisation."""
    return any(isinstance(layer, Residual) or (isinstance(layer, Conv) and layer.batch_norm) for layer in architecture)


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
        case GlobalAverage() | TokenMean():
            return shape[-1:]
        case OneHot() | Encoder():
            return shape
        case Patches():
            *sides, width = shape_after(layer.embedding, shape)
            return (math.prod(sides), width)
        case Flatten():
            return (math.prod(shape),)
        case Dense():
            if len(shape) != 1:
                raise ValueError(f"a Dense layer needs a Flatten or a mean before it, got inputs of shape {shape}")
            return (layer.units,)


def with_shapes(architecture: Architecture, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """The layers, each with the shape that enters it."""
    shape = input_shape
    for layer in architecture:
        yield layer, shape
        shape = shape_after(layer, shape)


def initial_weights(architecture: Architecture, input_shape: Shape, seed: int) -> list[np.ndarray]:
    """The initial weights of a network, float32, in the order of Keras.

    Kernels are He-uniform, those of attention Glorot-uniform, positions normal with standard deviation 0.02, biases zero; a
    normalisation has scale 1, shift 0, moving mean 0 and moving variance 1.

    Args:
        input_shape: of one point, channels last.
        seed: of NumPy's generator: the same in every framework.
    Returns:
        Kernel (k, ..., in, out) and bias of each Conv, with scale, shift, mean and variance of its batch normalisation behind
        them; those of a Residual's convolutions, the second one's `beside` the shortcut's; kernel (in, out) and bias of each
        Dense; kernel, bias and positions (tokens, width) of Patches; scale and shift, kernels and biases of query, key, value
        (width, heads, width / heads) and output (heads, width / heads, width), scale and shift, kernels and biases of both
        dense layers of an Encoder; scale and shift of a TokenMean.
    Source: He et al. 2015, arXiv 1502.01852, eq. (10), uniform form; Glorot & Bengio 2010, eq. (16).
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
        case Patches():
            positions = rng.normal(0.0, 0.02, shape_after(layer, shape)).astype(np.float32)
            return [*_weights(layer.embedding, shape, rng), positions]
        case Encoder():
            width = shape[-1]
            attention = _attention(width, layer.heads, rng)
            mlp = [*_he_uniform((width, layer.hidden), rng), *_he_uniform((layer.hidden, width), rng)]
            return [*_norm(width)[:2], *attention, *_norm(width)[:2], *mlp]
        case TokenMean():
            return _norm(shape[-1])[:2]
    return []


def _attention(width: int, heads: int, rng: np.random.Generator) -> list[np.ndarray]:
    if width % heads:
        raise ValueError(f"an Encoder must have heads that divide its width, got {heads} heads at width {width}")
    bound, split = np.sqrt(3.0 / width), (heads, width // heads)
    query, key, value, output = rng.uniform(-bound, bound, (4, width, width)).astype(np.float32)
    zeros = np.zeros(split, np.float32)
    entering = [array for kernel in (query, key, value) for array in (kernel.reshape(width, *split), zeros)]
    return [*entering, output.reshape(*split, width), np.zeros(width, np.float32)]


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

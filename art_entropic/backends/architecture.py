"""Networks described as data, so that every framework builds the same one from the same initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Activation = Literal["relu", "silu"]

# Of batch normalisation: what each batch leaves of the moving averages (PyTorch calls 1 minus this its momentum).
NORM_MOMENTUM, NORM_EPSILON = 0.9, 1e-5


@dataclass(frozen=True)
class Conv:
    """2-D convolution with a square kernel, zero padding `padding` on every side, then the activation.

    With `batch_norm`, a batch normalisation with scale 1 and shift 0 stands between the two. Its moving averages are not quite
    the same in training: PyTorch's takes the unbiased variance of a batch, Keras's the biased one.
    """

    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    activation: Activation = "relu"
    batch_norm: bool = False


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over non-overlapping square windows."""

    size: int = 2


@dataclass(frozen=True)
class Flatten:
    """Everything but the batch into one axis, in (height, width, channel) order in every framework."""


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, then the activation; the last one of a network has none and yields logits."""

    units: int
    activation: Activation | None = "relu"


Layer = Conv | MaxPool | Flatten | Dense
Architecture = tuple[Layer, ...]


def initial_weights(
    architecture: Architecture, input_shape: tuple[int, int, int], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """He-uniform kernels and zero biases of every weighted layer, float32.

    Args:
        input_shape: (height, width, channels).
        seed: of NumPy's generator: the same in every framework.
    Returns:
        (kernel, bias) per Conv, kernel (k, k, in, out), and per Dense, kernel (in, out).
    Source: He et al. 2015, arXiv 1502.01852, eq. (10), uniform form.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = input_shape
    features: int | None = None
    weights = []
    for layer in architecture:
        match layer:
            case Conv(filters=filters, kernel=kernel, stride=stride, padding=padding):
                shape: tuple[int, ...] = (kernel, kernel, channels, filters)
                height = (height + 2 * padding - kernel) // stride + 1
                width = (width + 2 * padding - kernel) // stride + 1
                channels = filters
            case MaxPool(size=size):
                height, width = height // size, width // size
                continue
            case Flatten():
                features = height * width * channels
                continue
            case Dense(units=units):
                if features is None:
                    raise ValueError("a Dense layer needs a Flatten before it")
                shape = (features, units)
                features = units
        bound = np.sqrt(6.0 / np.prod(shape[:-1]))
        weights.append((rng.uniform(-bound, bound, shape).astype(np.float32), np.zeros(shape[-1], np.float32)))
    return weights

"""Random perturbations: points of the ball from which an adversary may choose."""

from __future__ import annotations

import math

import numpy as np

from art_entropic.ops import Array


def unit_ball(rng: np.random.Generator, shape: tuple[int, ...], norm: float) -> Array:
    """Points that are uniform in the ball |d|_norm <= 1, one for each row, float32 of that shape.

    Args:
        shape: (n, ...).
        norm: infinity or 2.
    Source: for L2 a direction of a Gaussian vector, and a radius u^(1 / dimension) with u uniform (Muller 1959,
        doi 10.1145/377939.377946).
    """
    if math.isinf(norm):
        return rng.random(shape, np.float32) * np.float32(2.0) - np.float32(1.0)
    direction = sphere(rng, shape)
    n, dimension = len(direction), max(1, math.prod(shape[1:]))
    radius = rng.random((n, *([1] * (len(shape) - 1)))) ** (1 / dimension)
    points: Array = direction * radius.astype(np.float32)
    return points


def sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Points that are uniform on |d|_2 = 1, one for each row, float32 of that shape."""
    rows = rng.standard_normal((shape[0], math.prod(shape[1:])), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.reshape(shape)

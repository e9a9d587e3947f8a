"""Lines around nonlinearities over NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf, expit

from art_entropic.backends.numpy import ops
from art_entropic.linear_bounds import CURVES, curved
from art_entropic.ops import Box


def softplus(z):
    return np.logaddexp(0.0, z)


def elu(z):
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0.0)))


FUNCTIONS = {
    "sigmoid": expit,
    "tanh": np.tanh,
    "softplus": softplus,
    "logsigmoid": lambda z: -softplus(-z),
    "silu": lambda z: z * expit(z),
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
    "mish": lambda z: z * np.tanh(softplus(z)),
    "erf": erf,
    "atan": np.arctan,
    "softsign": lambda z: z / (1 + np.abs(z)),
    "tanhshrink": lambda z: z - np.tanh(z),
    "elu": elu,
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * elu(z)),
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
    "square": np.square,
}


@pytest.mark.parametrize("name", list(CURVES))
def test_no_curve_bends_more_than_was_proved(name):
    f, curve, step = FUNCTIONS[name], CURVES[name], 1e-3
    z = np.linspace(0.0, 12.0, 12001)
    away = np.all([np.abs(z - abs(kink)) > 2 * step for kink in curve.kinks], axis=0) if curve.kinks else z >= 0
    z = z[away]
    assert curve.bend is not None
    known = curve.bend(ops, z)
    for place in (z, -z):
        second = (f(place + step) - 2 * f(place) + f(place - step)) / step**2
        # The difference is that of a mean of f'' over two steps, and of float64: 2e-16 z**2 / step**2.
        assert np.all(np.abs(second) <= known + 1e-7)
    assert np.all(np.diff(known) <= 0.0)


@pytest.mark.parametrize("name", list(CURVES))
def test_lines_enclose_the_curve_on_boxes_of_all_sizes(name, rng):
    f, n = FUNCTIONS[name], 2000
    centre, radius = rng.normal(size=n) * 10 ** rng.uniform(-2, 1.3, n), 10 ** rng.uniform(-4, 1.3, n)
    box = Box(centre - radius * rng.random(n), centre + radius * rng.random(n))
    lines = curved(ops, f, box, CURVES[name])
    z = np.linspace(box.lower, box.upper, 301)
    assert np.all(lines.below.at(z) <= f(z)) and np.all(f(z) <= lines.above.at(z))

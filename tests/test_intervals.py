"""The shared interval rules over NumPy float64: hand-computed boxes, and soundness on random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf, expit

from art_entropic import intervals
from art_entropic.backends.numpy import ops
from art_entropic.ops import Box

boxes = st.builds(
    lambda centre, radius: Box(np.array(centre) - radius, np.array(centre) + radius),
    st.lists(st.floats(-6, 6), min_size=5, max_size=5),
    st.floats(0, 4),
)
SILU = (lambda x: x * expit(x), intervals.SILU_ARGMIN)
GELU = (lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, intervals.GELU_ARGMIN)
GELU_TANH = (
    lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    intervals.GELU_TANH_ARGMIN,
)
MISH = (lambda x: x * np.tanh(np.logaddexp(0, x)), intervals.MISH_ARGMIN)


def inside(box, n=50, seed=0):
    shape = (n, *np.shape(box.lower))
    return box.lower + (box.upper - box.lower) * np.random.default_rng(seed).random(shape)


def assert_contains(box, values):
    assert np.all(values >= box.lower - 1e-9) and np.all(values <= box.upper + 1e-9)


@pytest.mark.parametrize("f, argmin", [SILU, GELU, GELU_TANH, MISH], ids=["silu", "gelu", "gelu_tanh", "mish"])
@given(box=boxes)
def test_valley_contains_every_value_and_touches_both_ends(f, argmin, box):
    result = intervals.valley(ops, f, argmin, box)
    dense = np.linspace(box.lower, box.upper, 2001)
    assert_contains(result, f(dense))
    np.testing.assert_allclose(result.lower, f(dense).min(0), atol=1e-4)
    np.testing.assert_allclose(result.upper, f(dense).max(0), atol=1e-9)


@pytest.mark.parametrize("f, argmin", [SILU, GELU, GELU_TANH, MISH], ids=["silu", "gelu", "gelu_tanh", "mish"])
def test_argmin_is_the_minimum(f, argmin):
    around = argmin + np.linspace(-0.01, 0.01, 20001)
    assert abs(around[np.argmin(f(around))] - argmin) < 2e-6


def test_affine_by_hand():
    weight = np.array([[1.0, -2.0], [3.0, 0.5]])
    box = Box(np.array([0.0, 1.0]), np.array([2.0, 1.5]))
    result = intervals.affine(lambda x: weight @ x + 1, lambda x: np.abs(weight) @ x, box)
    # Row 0: 1 + [0, 2] - 2 [1, 1.5] = [-2, 1]; row 1: 1 + 3 [0, 2] + 0.5 [1, 1.5] = [1.5, 7.75].
    np.testing.assert_allclose(result.lower, [-2.0, 1.5])
    np.testing.assert_allclose(result.upper, [1.0, 7.75])


@given(box=boxes, epsilon=st.sampled_from([1e-5, 1e-3, 0.1]))
def test_standardise_contains_every_point_of_the_box(box, epsilon):
    def mean(x):
        return x.mean(-1, keepdims=True)

    result = intervals.standardise(ops, box, mean, 5, epsilon)
    x = np.concatenate([inside(box), np.where(np.random.default_rng(1).random((50, 5)) < 0.5, *box)])
    y = (x - mean(x)) / np.sqrt(mean((x - mean(x)) ** 2) + epsilon)
    assert_contains(result, y)


@given(left=boxes, right=boxes)
def test_multiply_and_subtract_contain_every_pair(left, right):
    a, b = inside(left, seed=1), inside(right, seed=2)
    assert_contains(intervals.multiply(ops, left, right), a * b)
    assert_contains(intervals.subtract(left, right), a - b)
    assert_contains(intervals.scale(ops, left, np.array([-1.0, 2.0, 0.0, -0.5, 1.0])), a * [-1.0, 2.0, 0.0, -0.5, 1.0])


def test_ball_is_cut_at_clip_values_and_holds_its_centre():
    x = np.array([0.05, 0.5, 1.2])
    box = intervals.ball(ops, x, 0.1, (0.0, 1.0))
    np.testing.assert_allclose(box.lower, [0.0, 0.4, 1.1])
    np.testing.assert_allclose(box.upper, [0.15, 0.6, 1.2])
    np.testing.assert_allclose(intervals.ball(ops, x, 0.1, None).lower, x - 0.1)


def test_certified_by_hand():
    y = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    lower = np.array([[2.0, -9, -9], [-9, 1.0, -9], [-9, -9, -5.0], [np.nan, 0, 0]])
    upper = np.array([[9.0, 1.9, 0], [1.0, 9, 0], [-6, -5.5, 9], [9, 0, 0]])
    # Certain; a tie is not; certain below zero; NaN is not.
    np.testing.assert_array_equal(intervals.certified(ops, Box(lower, upper), y), [1, 0, 1, 0])
    np.testing.assert_allclose(intervals.worst_case_logits(Box(lower, upper), y)[0], [2.0, 1.9, 0.0])

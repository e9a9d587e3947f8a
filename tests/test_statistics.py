import math

import numpy as np
import pytest

from art_entropic.statistics import accuracy, holm, mcnemar


def test_interval_is_wilsons():
    result = accuracy(np.array([True] * 8 + [False] * 2))
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = 0.8, n = 10, z = 1.959964
    np.testing.assert_allclose([result.value, result.low, result.high], [0.8, 0.490162, 0.943318], atol=1e-6)
    assert accuracy(8, 10) == result


@pytest.mark.parametrize(("correct", "edge"), [(0, "low"), (5, "high")])
def test_interval_stays_a_share_at_the_ends(correct, edge):
    result = accuracy(correct, 5)
    assert getattr(result, edge) == correct / 5
    assert 0 <= result.low < result.high <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([], bool),), "`n` must be at least 1"),
        ((3, 2), "between 0 and n = 2, got 3"),
        ((3,), "`n` must be at least 1, got None"),
        ((np.array([1, 0]),), "must be bool"),
    ],
)
def test_what_is_no_count_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        accuracy(*arguments)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (3, 9), (9, 3), (7, 7), (0, 40)])
def test_mcnemar_is_the_binomial_test_of_the_points_that_differ(one, other):
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1)) / 2**n
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail))


def test_holm_counts_each_p_at_its_rank():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert np.isnan(holm([math.nan, 0.5])[0])

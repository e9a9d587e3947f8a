"""A decision that stops early is the one with every point looked at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from art_entropic.evaluation.deciding import alarming_count, more_often, share_above, stronger


class Looks:
    """Remembers which points were looked at."""

    def __init__(self, truth):
        self.truth, self.seen = truth, []

    def __call__(self, points):
        self.seen += points.tolist()
        return self.truth[points]


@pytest.mark.parametrize(("n", "tolerated"), [(0, 0.05), (1, 0.01), (7, 0.05), (20, 0.05), (200, 0.01), (200, 0.05)])
def test_a_count_is_alarming_where_the_binomial_test_is_surprised(n, tolerated):
    surprising = [binomtest(k, n, tolerated, alternative="greater").pvalue < 0.01 for k in range(n + 1)] if n else [False]
    assert [more_often(k, n, tolerated).suspicious for k in range(n + 1)] == surprising
    assert alarming_count(n, tolerated) == sum(not one for one in surprising)


sizes = st.tuples(st.integers(1, 120), st.integers(1, 40), st.floats(0, 1), st.floats(0, 0.3), st.integers(0, 2**32 - 1))


@given(sizes, st.sampled_from([0.01, 0.05]), st.integers(0, 30))
def test_a_share_is_judged_as_if_every_suspect_were_looked_at(size, tolerated, known):
    n, part, suspected, rate, seed = size
    rng = np.random.default_rng(seed)
    suspects = rng.permutation(np.flatnonzero(rng.random(n) < suspected))
    look = Looks(rng.random(n) < rate)
    count = int(look.truth[suspects].sum())
    found = share_above(n, suspects, look, tolerated, part=part, known=min(known, len(suspects)))
    assert found.suspicious == (binomtest(count, n, tolerated, alternative="greater").pvalue < 0.01)
    assert look.seen == suspects[: len(look.seen)].tolist()
    assert found.n == n - len(suspects) + len(look.seen)
    np.testing.assert_allclose(found.value, look.truth[look.seen].sum() / max(1, found.n), rtol=1e-12)


@given(sizes, st.integers(0, 30))
def test_two_attacks_are_judged_as_if_both_had_met_every_point(size, known):
    n, part, strength, rate, seed = size
    rng = np.random.default_rng(seed)
    strong, weak = rng.random(n) < strength, rng.random(n) < strength + rate
    contested, others = np.flatnonzero(~strong), np.flatnonzero(strong)
    only_weak, only_strong = Looks(weak & ~strong), Looks(strong & ~weak)
    found = stronger(n, contested, only_weak, others, only_strong, part=part, known=min(known, len(contested)))
    a, b = int(only_weak.truth.sum()), int(only_strong.truth.sum())
    assert found.suspicious == (a > b and binomtest(a, a + b).pvalue < 0.01)
    assert len(set(only_weak.seen + only_strong.seen)) == len(only_weak.seen + only_strong.seen) == found.n
    counted = only_weak.truth[only_weak.seen].sum() - only_strong.truth[only_strong.seen].sum()
    np.testing.assert_allclose(found.value, counted / max(1, found.n), rtol=1e-12)


@pytest.mark.parametrize(
    ("shown", "looked_at", "suspicious"),
    [
        ([0], 20, False),  # with 9 of the other 180 that makes 10, and 19 of 200 would be alarming
        ([0, 1], 70, False),  # with 18 of the other 180 that makes 20; after 70, with 4 of the other 130, no more than 6
        (range(20), 20, True),
        (range(100, 200), 20, False),  # those that would have shown it were told to be the less likely ones
    ],
)
def test_a_first_look_may_settle_it(shown, looked_at, suspicious):
    look = Looks(np.isin(np.arange(200), list(shown)))
    found = share_above(200, np.arange(200), look, 0.05, part=50, first_look=20)
    assert (len(look.seen), found.n, found.suspicious) == (looked_at, looked_at, suspicious)


def test_what_could_not_change_the_decision_is_not_looked_at():
    def never(points):
        raise AssertionError("looked at")

    assert share_above(200, np.arange(6), never, 0.01, part=10) == (False, 0.0, 0.01, 194)
    assert stronger(200, np.arange(7), never, np.arange(7, 200), never, part=10) == (False, 0.0, 0.0, 0)

"""p-values of paired differences and Holm's correction: by hand, by a slow reference, and by their error rate."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.metrics.bootstrap import interval
from rayrank.metrics.paired import holm, resamples_for, two_sided_p


def test_p_by_hand() -> None:
    samples = np.array([0.1, 0.2, 0.3, -0.1, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert two_sided_p(samples) == pytest.approx(2 * 2 / 10)  # one of nine lies on the other side
    assert two_sided_p(-samples) == two_sided_p(samples)
    assert two_sided_p(np.abs(samples)) == pytest.approx(2 / 10)  # as small as nine samples allow
    assert two_sided_p(np.zeros(5)) == 1.0
    assert two_sided_p(np.array([np.nan, 1.0])) == 1.0
    assert np.isnan(two_sided_p(np.array([np.nan])))


def test_p_is_below_the_level_where_the_interval_leaves_out_zero() -> None:
    generator = np.random.default_rng(0)
    for shift in np.linspace(1.5, 2.5, 41):
        samples = generator.normal(size=2000) + shift
        found = interval(shift, samples)
        if abs(found.low) > 0.02:  # at the very edge the sample more decides
            assert (two_sided_p(samples) < 0.05) == (found.low > 0)


def test_chance_is_taken_for_a_finding_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(1)
    weights = generator.poisson(1.0, (400, 200)).astype(np.float64)
    false = 0
    for _ in range(400):
        gap = generator.normal(size=200)
        false += two_sided_p(weights @ gap / weights.sum(axis=1)) < 0.05
    assert 0.02 < false / 400 < 0.09


def slow_holm(p: list[float]) -> list[float]:
    """Adjusted p of a test: the largest (m − rank) · p over the tests that are no less significant."""
    tests = [(value, i) for i, value in enumerate(p) if not np.isnan(value)]
    found = [float("nan")] * len(p)
    for value, i in tests:
        steps = []
        for other, j in tests:
            if (other, j) <= (value, i):
                smaller = sum((third, k) < (other, j) for third, k in tests)
                steps.append((len(tests) - smaller) * other)
        found[i] = min(1.0, max(steps))
    return found


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and no later one may be smaller.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.02, float("nan"), 0.9]), [0.04, float("nan"), 0.9])
    assert len(holm([])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_that_of_a_slow_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p = np.round(generator.random(12) ** 3, 2)
    p[3] = np.nan
    np.testing.assert_allclose(holm(p.tolist()), slow_holm(p.tolist()))


def test_enough_resamples_for_the_tests() -> None:
    assert resamples_for(1) == 1000
    assert resamples_for(36) == 3000
    assert holm([2 / (resamples_for(36) + 1)] * 36).max() < 0.025

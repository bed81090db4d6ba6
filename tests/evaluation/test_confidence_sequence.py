"""The confidence sequence: widths by hand, and a truth that stays inside on all days together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchrec_xd.evaluation.confidence_sequence import click_rate, difference, mixture_half_width, sequence


def test_the_width_by_hand():
    """I = 100, lambda = 25: sqrt(125 ln(125 / (25 * 0.0025))) / 100 = sqrt(125 * 7.600902) / 100."""
    assert mixture_half_width(0.01, 25.0) == pytest.approx(0.3082390, abs=1e-6)


def test_a_rate_and_its_variance_by_hand():
    """3 of 8; residuals 0.25, -0.75, 0.5; users without impressions do not count."""
    rate, variance = click_rate(np.array([1, 0, 2, 0]), np.array([2, 2, 4, 0]))
    assert rate == 3 / 8
    assert variance == pytest.approx((0.0625 + 0.5625 + 0.25) * 3 / 2 / 64)
    assert difference((0.5, 0.25), (0.375, 0.5)) == (0.125, 0.75)


def test_days_that_say_nothing_have_no_interval():
    nothing, one = click_rate(np.zeros(3), np.zeros(3)), click_rate(np.array([1.0]), np.array([2.0]))
    assert math.isnan(nothing[0])
    assert one[0] == 0.5
    assert math.isnan(one[1])
    found = sequence([nothing, (0.1, 0.0), (0.1, 0.01), (0.2, 0.005)])
    assert found[:2] == [None, None]
    assert found[2].high - 0.1 == pytest.approx(mixture_half_width(0.01, 100.0))
    assert found[3].high - 0.2 == pytest.approx(mixture_half_width(0.005, 100.0))
    assert not found[3].excludes_zero
    assert sequence([(0.1, 1e-4), (0.1, 1e-6)])[1].excludes_zero


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_the_truth_is_inside_on_all_days_together_in_95_of_100_tests(spread):
    """Users come back, are unlike one another, and new ones come; both arms are equal. Looking every day at an interval
    that is made for one look finds a difference far too often."""
    generator = np.random.default_rng(7)
    tests, days, users = 400, 30, 250
    outside = once = 0
    born = np.concatenate([np.zeros(users // 2, dtype=int), generator.integers(days, size=users - users // 2)])
    for _ in range(tests):
        differences = []
        arms = []
        for _arm in range(2):
            rate_U = 1 / (1 + np.exp(1.2 - spread * generator.standard_normal(users)))
            shown_UT = generator.poisson(3, (users, days)) * (born[:, None] <= np.arange(days))
            clicks_UT = generator.binomial(shown_UT, rate_U[:, None])
            arms.append((clicks_UT.cumsum(axis=1), shown_UT.cumsum(axis=1)))
        for day in range(days):
            a, b = (click_rate(clicks_UT[:, day], shown_UT[:, day]) for clicks_UT, shown_UT in arms)
            differences.append(difference(a, b))
        outside += any(interval.excludes_zero for interval in sequence(differences))
        once += any(abs(delta) > 1.96 * math.sqrt(variance) for delta, variance in differences)
    assert outside / tests <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tests)
    assert once / tests > 0.12

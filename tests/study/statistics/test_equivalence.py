import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cdgrad.study.statistics.equivalence import (
    anytime_equivalence,
    equivalence,
    equivalence_pairs,
    equivalence_power,
)


def test_the_p_is_the_larger_one_of_two_one_sided_t_tests():
    differences = np.random.default_rng(0).normal(0.05, 0.2, size=12)
    low = scipy_stats.ttest_1samp(differences, -0.2, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(differences, 0.2, alternative="less").pvalue
    assert equivalence(differences, 0.2).p == pytest.approx(max(low, high), rel=1e-9)


def test_it_is_shown_exactly_where_the_90_percent_interval_lies_within_the_margin():
    shown = 0
    for seed in range(40):
        result = equivalence(np.random.default_rng(seed).normal(0.0, 0.3, size=10), 0.2)
        assert result.shown == (result.interval.low > -0.2 and result.interval.high < 0.2)
        shown += result.shown
    assert 0 < shown < 40


def test_its_interval_is_the_90_percent_t_interval():
    differences = np.array([0.1, -0.2, 0.3, 0.05])
    expected = scipy_stats.t.interval(0.9, 3, differences.mean(), differences.std(ddof=1) / 2)
    assert equivalence(differences, 0.2).interval == pytest.approx(expected)


def test_too_few_values_and_no_margin():
    assert not equivalence([0.0], 1.0).shown
    assert equivalence([0.1, 0.1], 0.2).shown
    assert not any(equivalence([d, d], 0.2).shown for d in (0.3, -0.3, 0.2, -0.2))
    with pytest.raises(ValueError, match="expected a positive margin, got 0"):
        equivalence([0.0, 1.0], 0)
    with pytest.raises(ValueError, match="expected a positive margin, got inf"):
        anytime_equivalence([0.0, 1.0], math.inf)


def test_the_power_of_one_seed_is_0_and_without_a_spread_all_or_nothing():
    assert equivalence_power(1, 0.2, 0.1) == 0
    assert equivalence_power(2, 0.2, 0.1) > 0
    powers = [equivalence_power(3, 0.2, 0.0, difference) for difference in (0.1, -0.1, 0.2, -0.3)]
    assert powers == [1, 1, 0, 0]


@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_the_power_is_the_rate_of_simulated_studies(difference):
    differences = np.random.default_rng(2).normal(difference, 0.3, size=(4000, 15))
    rate = np.mean([equivalence(x, 0.25).shown for x in differences])
    assert equivalence_power(15, 0.25, 0.3, difference) == pytest.approx(rate, abs=0.03)


def test_at_the_margin_it_is_shown_in_alpha_of_studies_at_most():
    assert equivalence_power(40, 0.25, 0.3, 0.25) == pytest.approx(0.05, abs=0.002)


def test_the_number_of_seeds_is_the_first_to_reach_the_power():
    n = equivalence_pairs(0.2, 0.3)
    assert equivalence_power(n - 1, 0.2, 0.3) < 0.8 <= equivalence_power(n, 0.2, 0.3)
    # for many seeds (z_0.95 + z_0.9)^2 sd^2 / margin^2
    assert equivalence_pairs(0.02, 0.3) == pytest.approx((1.6449 + 1.2816) ** 2 * (0.3 / 0.02) ** 2, rel=0.01)

import itertools
import math

import numpy as np
import pytest

from cdgrad.study import stats


def test_the_t_interval_equals_its_closed_form():
    # n = 4, mean 2.5, s = sqrt(5/3), t(0.975; 3) = 3.182446
    low, high = stats.mean_interval([1, 2, 3, 4])
    half = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-8)


def test_the_sign_flip_p_equals_enumeration():
    d = np.array([0.3, -0.1, 0.8, 0.4, -0.2, 0.5, 0.0])
    means = [abs(np.mean(d * signs)) for signs in itertools.product([1, -1], repeat=len(d))]
    expected = np.mean(np.array(means) >= abs(d.mean()) - 1e-12)
    assert stats.sign_flip_p(d) == pytest.approx(expected, rel=1e-12)


def test_in_null_studies_the_t_interval_covers_and_the_test_keeps_its_size():
    rng = np.random.default_rng(7)
    studies = rng.normal(size=(400, 10))
    covered = np.mean([low <= 0 <= high for low, high in map(stats.mean_interval, studies)])
    rejected = np.mean([stats.sign_flip_p(d) < 0.05 for d in studies])
    assert 0.93 <= covered <= 0.97
    assert 0.03 <= rejected <= 0.07


def test_power_equals_simulation():
    rng = np.random.default_rng(8)
    studies = rng.normal(loc=0.5, scale=1.0, size=(4000, 20))
    shown = np.mean([low > 0 or high < 0 for low, high in map(stats.mean_interval, studies)])
    assert stats.paired_power(20, 0.5, 1.0) == pytest.approx(shown, abs=0.025)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_required_pairs_are_those_of_the_published_tables(effect, pairs):
    # J. Cohen's conventional effect sizes; the counts are G*Power's for a paired two-sided t-test.
    assert stats.required_pairs(effect, 1.0) == pairs
    assert stats.paired_power(pairs, effect, 1.0) >= 0.8 > stats.paired_power(pairs - 1, effect, 1.0)


def test_no_power_beyond_the_level_where_there_is_no_difference():
    assert stats.paired_power(12, 0.0, 1.0) == pytest.approx(0.05, abs=1e-9)
    assert stats.required_pairs(0.1, 0.0) == 2


def test_the_bootstrap_agrees_with_t_where_there_are_many_values():
    x = np.random.default_rng(9).normal(1.0, 2.0, size=400)
    assert stats.bca_interval(x) == pytest.approx(stats.mean_interval(x), abs=0.03)


def test_the_bootstrap_of_skewed_values_leans_to_their_side():
    x = np.random.default_rng(10).exponential(size=40)
    low, high = stats.bca_interval(x)
    assert high - x.mean() > x.mean() - low


def test_repeating_an_analysis_gives_the_same_numbers():
    d = np.random.default_rng(11).normal(size=20)  # beyond exact enumeration
    assert stats.bca_interval(d) == stats.bca_interval(d)
    assert stats.sign_flip_p(d) == stats.sign_flip_p(d)


def test_holm():
    # S. Holm's procedure by hand: 0.01 * 3, 0.03 * 2, and 0.04 raised to its predecessor.
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]
    adjusted = stats.holm([0.02, math.nan])
    assert adjusted[0] == 0.02
    assert math.isnan(adjusted[1])


def test_a_comparison_is_of_the_arm_minus_the_baseline():
    found = stats.compare([2.0, 3.0, 5.0, 4.0], [3.0, 3.0, 6.0, 3.0])
    assert found.differences.tolist() == [-1.0, 0.0, -1.0, 1.0]
    assert found.mean == -0.25
    assert found.wins == (2 + 0.5) / 4
    assert found.correlation == pytest.approx(np.corrcoef([2, 3, 5, 4], [3, 3, 6, 3])[0, 1])


def test_equal_arms_are_a_null_without_spread():
    found = stats.compare([2.0, 3.0, 4.0], [2.0, 3.0, 4.0])
    assert found.interval == found.bootstrap == (0.0, 0.0)
    assert found.p == 1.0
    assert found.wins == 0.5


def test_one_pair_has_a_difference_and_no_interval():
    found = stats.compare([2.0], [3.0])
    assert found.mean == -1.0
    assert np.isnan([*found.interval, *found.bootstrap, found.p, found.sd, found.correlation]).all()
    assert "at least 2" in stats.verdict("b", "a", found, found.p)


def test_the_verdict_on_a_null_names_the_largest_difference_left_open():
    found = stats.compare([2.0, 3.1, 4.0, 5.1], [2.1, 3.0, 4.1, 5.0])
    bound = max(map(abs, found.interval))
    sentence = stats.verdict("b", "a", found, found.p)
    assert f"no difference larger than {math.ceil(100 * bound) / 100:.2f} points is supported" in sentence


@pytest.mark.parametrize(("shift", "word"), [(-1.0, "fewer"), (1.0, "more")])
def test_the_verdict_on_a_difference_says_which_way(shift, word):
    base = np.linspace(2.0, 4.0, 10)
    found = stats.compare(base + shift + 0.1 * np.sin(np.arange(10)), base)
    assert f"points {word} errors than a" in stats.verdict("b", "a", found, found.p)
    assert "no difference is shown" in stats.verdict("b", "a", found, 0.2)  # after Holm's correction


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        stats.compare([1.0, 2.0], [1.0])

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from cdgrad.study import StudyError
from cdgrad.study.report.verdicts import verdict
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats


def test_the_t_interval_equals_its_closed_form():
    # n = 4, mean 2.5, s = sqrt(5/3), t(0.975; 3) = 3.182446
    low, high = stats.mean_interval([1, 2, 3, 4])
    half = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-8)
    # n = 2, s / sqrt(2) = 1/2, t(0.975; 1) = 12.7062
    assert stats.mean_interval([0, 1]) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), rel=1e-5)


def test_the_sign_flip_p_equals_enumeration():
    differences = np.array([0.3, -0.1, 0.8, 0.4, -0.2, 0.5, 0.0])
    means = [
        abs(np.mean(differences * signs)) for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    expected = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    assert stats.sign_flip_p(differences) == pytest.approx(expected, rel=1e-12)


def test_ties_count_as_ties_whatever_their_rounding():
    # Differences on a test set of 359 images, as in a study; whole numbers of images decide exactly.
    rng = np.random.default_rng(3)
    for _ in range(100):
        wrong = rng.integers(0, 12, size=(2, 8))
        images = wrong[0] - wrong[1]
        sums = [abs(int(images @ np.array(signs))) for signs in itertools.product([1, -1], repeat=8)]
        expected = np.mean(np.array(sums) >= abs(images.sum()))
        errors = 100 * wrong / 359
        assert stats.sign_flip_p(errors[0] - errors[1]) == pytest.approx(expected, rel=1e-12)


def test_random_flips_agree_with_the_normal_limit():
    differences = np.random.default_rng(4).normal(0.1, 1.0, size=400)
    # sum / sqrt(sum of squares) is standard normal under random signs, for many pairs.
    z = abs(differences.sum()) / math.sqrt(np.square(differences).sum())
    assert 0.005 < stats.sign_flip_p(differences) < 0.2
    assert stats.sign_flip_p(differences) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)


@pytest.mark.parametrize("pairs", [2, 5, 10, 17, 18, 30])
def test_no_p_is_below_the_smallest(pairs):
    p = stats.sign_flip_p(np.linspace(1, 2, pairs))
    assert p == pytest.approx(stats.smallest_p(pairs), rel=0.3 if pairs == 18 else 1e-12)


def test_the_fewest_pairs_are_the_first_whose_smallest_p_is_small_enough():
    # 2^-5 = 0.031, 2 * 2^-6 = 0.031, 3 * 2^-6 = 0.047, 4 * 2^-7 = 0.031; 3276 * 2^-16 = 0.04999
    assert [stats.fewest_tested_pairs(tests) for tests in (1, 2, 3, 4, 3276)] == [6, 7, 7, 8, 17]
    assert stats.fewest_tested_pairs(3277) is None
    assert stats.fewest_tested_pairs(2, level=0.5) == 4, "2 * 2^-2 is 1 / 2, and not below it"
    assert math.isnan(stats.smallest_p(1))


def correlated(rng, shape):
    """Errors of two equal arms whose seeds share half of their variance."""
    shared = rng.normal(5, 1, size=shape)
    return shared + rng.normal(size=shape), shared + rng.normal(size=shape)


def few_images(rng, shape):
    """Errors of two equal arms on 200 test images: coarse, tied, skewed; a seed decides the difficulty."""
    chance = np.clip(rng.normal(0.05, 0.015, size=shape), 0.01, 1)
    return tuple(100 * rng.binomial(200, chance) / 200 for _ in range(2))


@pytest.mark.parametrize("errors", [correlated, few_images])
@pytest.mark.parametrize("pairs", [10, 30])
def test_in_1000_null_studies_the_t_interval_covers_and_the_test_keeps_its_size(pairs, errors):
    a, b = errors(np.random.default_rng(7), (1000, pairs))
    assert 0.2 < np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.8  # they are paired
    differences = a - b
    covered = np.mean([low <= 0 <= high for low, high in map(stats.mean_interval, differences)])
    rejected = np.mean([stats.sign_flip_p(study) < 0.05 for study in differences])
    assert 0.93 <= covered <= 0.97
    assert 0.03 <= rejected <= 0.07


@pytest.mark.parametrize(("pairs", "low", "high"), [(5, 0.81, 0.88), (10, 0.87, 0.93)])
def test_the_bootstrap_covers_as_little_as_its_documentation_says(pairs, low, high):
    samples = np.random.default_rng(12).normal(size=(500, pairs))
    covered = np.mean([a <= 0 <= b for a, b in map(stats.bca_interval, samples)])
    assert low < covered < high


def test_the_interval_of_the_median_is_of_order_statistics():
    # The second smallest and largest of 10: 1 - 2 (1 + 10) / 2^10 = 97.9 %.
    assert stats.median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000]) == (2, 9)
    assert np.isnan(stats.median_interval([1, 2, 3, 4, 5])).all()
    assert np.isnan(stats.median_interval([1, 2], level=0.5)).all()  # the largest alone would cover
    samples = np.random.default_rng(13).normal(size=(500, 10))
    covered = np.mean([a <= 0 <= b for a, b in map(stats.median_interval, samples)])
    assert covered == pytest.approx(0.979, abs=0.02)


@pytest.mark.parametrize(("pairs", "difference"), [(5, 1.0), (10, 0.9), (20, 0.5)])
def test_power_equals_simulation(pairs, difference):
    studies = np.random.default_rng(8).normal(loc=difference, size=(4000, pairs))
    shown = np.mean([low > 0 or high < 0 for low, high in map(stats.mean_interval, studies)])
    assert stats.paired_power(pairs, difference, 1.0) == pytest.approx(shown, abs=0.025)


def test_a_huge_difference_is_always_shown():
    assert stats.paired_power(10, 4.0, 1.0) == pytest.approx(1.0)
    assert stats.required_pairs(40.0, 0.5) == 2


@pytest.mark.parametrize("pairs", [2, 3, 10, 34, 199])
def test_the_detectable_difference_inverts_power(pairs):
    difference = stats.detectable_difference(pairs, 0.7)
    assert stats.paired_power(pairs, difference, 0.7) == pytest.approx(0.8, abs=1e-9)
    assert difference == pytest.approx(0.7 * stats.detectable_difference(pairs, 1.0))


def test_the_detectable_difference_of_many_pairs_is_that_of_the_normal_distribution():
    # (z(0.975) + z(0.8)) / sqrt(n)
    assert stats.detectable_difference(10_000, 1.0) == pytest.approx((1.959964 + 0.841621) / 100, rel=1e-3)
    assert stats.detectable_difference(10, 0.0) == 0.0
    assert np.isnan([stats.detectable_difference(1, 0.5), stats.detectable_difference(5, math.nan)]).all()


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_required_pairs_are_those_of_the_published_tables(effect, pairs):
    # J. Cohen's conventional effect sizes; the counts are G*Power's for a paired two-sided t-test.
    assert stats.required_pairs(effect, 1.0) == pairs
    assert stats.paired_power(pairs, effect, 1.0) >= 0.8 > stats.paired_power(pairs - 1, effect, 1.0)
    assert stats.fewest_pairs_with(lambda n: n / pairs, 1.0) == pairs  # a power that is just reached


def test_no_power_beyond_the_level_where_there_is_no_difference():
    assert stats.paired_power(12, 0.0, 1.0) == pytest.approx(0.05, abs=1e-9)
    assert stats.paired_power(1, 1.0, 1.0) == 0
    assert stats.required_pairs(0.1, 0.0) == 2


def test_the_bootstrap_agrees_with_t_where_there_are_many_values():
    x = np.random.default_rng(9).normal(1.0, 2.0, size=400)
    assert stats.bca_interval(x) == pytest.approx(stats.mean_interval(x), abs=0.03)


def test_the_bootstrap_of_skewed_values_leans_to_their_side():
    x = np.random.default_rng(10).exponential(size=40)
    low, high = stats.bca_interval(x)
    assert high - x.mean() > x.mean() - low


def test_a_run_that_is_recorded_twice_is_refused(tiny, make_run):
    runs = [make_run("sgd", 0, 3.0), make_run("sgd", 0, 4.0), make_run("directed", 0, 3.0)]
    for order in (runs, runs[::-1]):
        with pytest.raises(StudyError, match="tiny: sgd, seed 0 is recorded twice; leave one record of it"):
            Results.of(tiny, order)
    assert Results.of(tiny, runs[1:]).errors("", "sgd") == [4.0]


def test_repeating_an_analysis_gives_the_same_numbers():
    differences = np.random.default_rng(11).normal(size=20)  # beyond exact enumeration
    assert stats.bca_interval(differences) == stats.bca_interval(differences)
    first = stats.sign_flip_p(differences)
    stats.sign_flips.cache_clear()
    assert stats.sign_flip_p(differences) == first


def test_the_flips_of_many_seeds_fit_in_memory_and_are_those_of_one_draw():
    stats.sign_flips.cache_clear()
    d = np.random.default_rng(12).normal(size=100)
    tracemalloc.start()
    p = stats.sign_flip_p(d)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**16 * 100  # as float64 they would take eight bytes each
    flipped = np.random.default_rng(0).random((2**16, 100)) < 0.5
    flipped[0] = False
    assert ((stats.sign_flips(100) < 0) == flipped).all()
    assert p == np.mean(abs(np.where(flipped, -1, 1) @ d) >= abs(d.sum()) - 1e-9)


def test_holm():
    # S. Holm's procedure by hand: 0.01 * 3, 0.03 * 2, and 0.04 raised to its predecessor.
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]
    assert stats.holm([0.04, 0.01, 0.03], 5) == pytest.approx([0.12, 0.05, 0.12])
    with pytest.raises(ValueError, match="at least as many tests as p-values, got 1 for 2"):
        stats.holm([0.6, 0.9], 1)
    adjusted = stats.holm([0.02, math.nan])
    assert adjusted[0] == 0.02
    assert math.isnan(adjusted[1])


def test_a_comparison_is_of_the_arm_minus_the_baseline():
    compared = stats.compare([2.0, 3.0, 5.0, 4.0], [3.0, 3.0, 6.0, 3.0])
    assert compared.differences.tolist() == [-1.0, 0.0, -1.0, 1.0]
    assert compared.mean == -0.25
    assert compared.win_rate == (2 + 0.5) / 4
    assert compared.correlation == pytest.approx(np.corrcoef([2, 3, 5, 4], [3, 3, 6, 3])[0, 1])
    assert stats.compare([2.0, 3.0, 5.0], [3.0, 3.0, 6.0], larger_is_better=True).win_rate == 0.5 / 3


def test_nothing_is_correlated_with_a_constant_or_from_two_pairs():
    three, constant = [1.0, 2.0, 4.0], [5.0, 5.0, 5.0]
    pairs = [(three, constant), (constant, three), (three[:2], [3.0, 1.0])]
    assert np.isnan([stats.correlation(a, b) for a, b in pairs]).all()
    assert stats.correlation(three, [-2.0, -4.0, -8.0]) == pytest.approx(-1)


def test_equal_arms_are_a_null_without_variance():
    compared = stats.compare([2.0, 3.0, 4.0], [2.0, 3.0, 4.0])
    assert compared.interval == compared.bootstrap == (0.0, 0.0)
    assert stats.required_pairs(0.1, compared.sd) == 2
    assert compared.p == 1.0
    assert compared.win_rate == 0.5


def test_one_pair_has_a_difference_and_no_interval():
    compared = stats.compare([2.0], [3.0])
    assert compared.mean == -1.0
    assert np.isnan(
        [*compared.interval, *compared.bootstrap, compared.p, compared.sd, compared.correlation]
    ).all()
    assert "at least 2" in verdict("b", "a", compared, compared.p)


def test_the_verdict_on_a_null_has_both_ends_of_the_interval_names_p_and_claims_no_power():
    compared = stats.compare([2.0, 3.1, 4.0, 5.2], [2.1, 3.0, 4.1, 5.0])
    sentence = verdict("b", "a", compared, compared.p, "Holm p")
    low, high = compared.interval
    assert f"mean difference {compared.mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}" in sentence
    assert f"Holm p = {compared.p:.2g}" in sentence
    assert "% of studies" not in sentence


@pytest.mark.parametrize(("shift", "word"), [(-1.0, "better"), (1.0, "worse")])
def test_the_verdict_on_a_difference_says_which_way(shift, word):
    base = np.linspace(2.0, 4.0, 10)
    compared = stats.compare(base + shift + 0.1 * np.sin(np.arange(10)), base)
    assert f"b is {word} than a: its error is " in verdict("b", "a", compared, compared.p)
    assert "no difference is shown" in verdict("b", "a", compared, 0.2)  # after Holm's correction


def test_nothing_is_shown_where_p_is_small_and_the_interval_includes_0():
    # Ten of ten seeds are better, and one by so much that the t interval includes 0.
    compared = stats.compare([1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0, 1.0], [2.0] * 9 + [42.0])
    assert compared.p == 2 / 2**10
    assert compared.interval.low < 0 < compared.interval.high
    assert not stats.is_shown(compared, compared.p)
    sentence = verdict("b", "a", compared, compared.p)
    assert sentence.startswith(
        "b against a: no difference is shown, although p is below 0.05: the interval includes 0 (mean"
    )
    assert "although" not in verdict("b", "a", compared, 0.06)


def test_nothing_is_shown_by_equal_differences_or_an_interval_that_touches_0():
    equal = stats.compare(np.arange(8.0) + 1, np.arange(8.0))
    assert equal.p < 0.05
    assert equal.interval == (1, 1)
    assert not stats.is_shown(equal, equal.p)
    assert not stats.excludes_zero(stats.Interval(0, 1))
    assert not stats.excludes_zero(stats.Interval(-1, 0))


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        stats.compare([1.0, 2.0], [1.0])
    for of_both in ([], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="same seeds"):
            stats.compare(of_both, of_both)


def test_a_huge_pair_does_not_make_the_differences_of_the_others_vanish():
    base = np.array([0.30, 0.31, 0.32, 0.33, 0.34, 0.35])
    arm = base - [0.02, 0.03, 0.02, 0.01, 0.02, 0.03]
    for of_arm, of_base, better in ((1e30, 0.3, 6 / 7), (1e30, 1e30, 6.5 / 7)):
        compared = stats.compare(np.append(arm, of_arm), np.append(base, of_base))
        assert compared.median == pytest.approx(-0.02)
        assert compared.win_rate == pytest.approx(better)
    assert stats.compare([5.3, 4.3, 1e3 + 0.1], [5.2, 4.2, 1e3]).sd == 0


def test_rounding_errors_are_no_spread_and_no_sign():
    small, large = np.array([0.1, 0.2, 0.3]), np.array([12345.7789, 12345.8789, 12345.9789])
    assert np.ptp(small - large) > 0
    assert stats.compare(small, large).sd == stats.compare(large, small).sd == 0
    assert np.std([0.1, 0.1, 0.1], ddof=1) > 0
    assert stats.standard_deviation([0.1, 0.1, 0.1]) == 0
    assert 0.1 + 0.2 - 0.3 > 0
    assert stats.compare([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]).mean == 0

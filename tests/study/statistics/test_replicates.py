import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cdgrad.study.statistics.paired import mean_interval
from cdgrad.study.statistics.replicates import compare_replicates


def test_the_interval_and_p_are_those_of_the_means_of_the_searches():
    replicated = compare_replicates([[1.0, 3.0], [2.0, 4.0], [0.0, 4.0]])
    assert list(replicated.means) == [2, 3, 2]
    assert replicated.interval == mean_interval([2, 3, 2])
    assert replicated.p == pytest.approx(scipy_stats.ttest_1samp([2, 3, 2], 0).pvalue)
    assert replicated.one_search == mean_interval([1, 3, 2, 4, 0, 4])
    assert compare_replicates([[-1.0, -3.0], [-2.0, -4.0], [0.0, -4.0]]).p == replicated.p


def test_the_components_are_those_of_the_analysis_of_variance():
    differences = np.random.default_rng(0).normal(size=(4, 6)) + np.array([[0.0], [2.0], [-1.0], [1.0]])
    replicated = compare_replicates(list(differences))
    within = np.mean(differences.var(axis=1, ddof=1))
    between = 6 * differences.mean(1).var(ddof=1)
    assert replicated.seed_sd == pytest.approx(math.sqrt(within))
    assert replicated.tuning_sd == pytest.approx(math.sqrt((between - within) / 6))
    assert between / within == pytest.approx(scipy_stats.f_oneway(*differences).statistic)


def test_in_many_studies_the_components_are_those_that_were_planted():
    rng = np.random.default_rng(1)
    replicated = [
        compare_replicates(list(rng.normal(size=(8, 1)) * 2 + rng.normal(size=(8, 5)))) for _ in range(300)
    ]
    assert np.mean([study.tuning_sd**2 for study in replicated]) == pytest.approx(4, rel=0.1)
    assert np.mean([study.seed_sd**2 for study in replicated]) == pytest.approx(1, rel=0.1)


def test_it_covers_where_the_interval_of_one_search_does_not():
    rng = np.random.default_rng(2)
    studies = rng.normal(size=(400, 3, 1)) * 0.5 + rng.normal(size=(400, 3, 10)) * 0.5
    replicated = [compare_replicates(list(differences)) for differences in studies]
    assert 0.92 < np.mean([study.interval.low <= 0 <= study.interval.high for study in replicated]) < 0.98
    assert np.mean([study.one_search.low <= 0 <= study.one_search.high for study in replicated]) < 0.7


def test_one_search_has_no_interval_over_searches():
    with pytest.raises(ValueError, match="expected 2 or more searches"):
        compare_replicates([[1.0, 2.0]])
    for search in ([], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="expected 2 or more searches with seeds"):
            compare_replicates([[1.0, 2.0], search])


def test_one_seed_in_each_search_leaves_the_components_open():
    replicated = compare_replicates([[1.0], [2.0], [4.0]])
    assert np.isnan([replicated.tuning_sd, replicated.seed_sd]).all()
    assert replicated.interval == mean_interval([1, 2, 4])


def test_equal_means_of_searches_show_nothing():
    searches = [[-0.3], [-0.1 - 0.2]]  # equal but for rounding
    assert np.ptp(searches) > 0
    compared = compare_replicates(searches)
    assert np.ptp(compared.means) == 0
    assert math.isnan(compared.p)

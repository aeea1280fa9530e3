import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cdgrad.study.statistics.paired import mean_interval
from cdgrad.study.statistics.replicates import compare_replicates


def test_the_interval_and_p_are_those_of_the_means_of_the_searches():
    found = compare_replicates([[1.0, 3.0], [2.0, 4.0], [0.0, 4.0]])
    assert list(found.means) == [2, 3, 2]
    assert found.interval == mean_interval([2, 3, 2])
    assert found.p == pytest.approx(scipy_stats.ttest_1samp([2, 3, 2], 0).pvalue)
    assert found.one_search == mean_interval([1, 3, 2, 4, 0, 4])


def test_the_components_are_those_of_the_analysis_of_variance():
    d = np.random.default_rng(0).normal(size=(4, 6)) + np.array([[0.0], [2.0], [-1.0], [1.0]])
    found = compare_replicates(list(d))
    within = np.mean(d.var(axis=1, ddof=1))
    between = 6 * d.mean(1).var(ddof=1)
    assert found.seed_sd == pytest.approx(math.sqrt(within))
    assert found.tuning_sd == pytest.approx(math.sqrt((between - within) / 6))
    assert between / within == pytest.approx(scipy_stats.f_oneway(*d).statistic)


def test_in_many_studies_the_components_are_those_that_were_planted():
    rng = np.random.default_rng(1)
    found = [
        compare_replicates(list(rng.normal(size=(8, 1)) * 2 + rng.normal(size=(8, 5)))) for _ in range(300)
    ]
    assert np.mean([f.tuning_sd**2 for f in found]) == pytest.approx(4, rel=0.1)
    assert np.mean([f.seed_sd**2 for f in found]) == pytest.approx(1, rel=0.1)


def test_it_covers_where_the_interval_of_one_search_does_not():
    rng = np.random.default_rng(2)
    studies = rng.normal(size=(400, 3, 1)) * 0.5 + rng.normal(size=(400, 3, 10)) * 0.5
    found = [compare_replicates(list(d)) for d in studies]
    assert 0.92 < np.mean([f.interval.low <= 0 <= f.interval.high for f in found]) < 0.98
    assert np.mean([f.one_search.low <= 0 <= f.one_search.high for f in found]) < 0.7


def test_one_search_has_no_interval_over_searches():
    with pytest.raises(ValueError, match="expected 2 or more searches"):
        compare_replicates([[1.0, 2.0]])

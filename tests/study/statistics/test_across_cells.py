import numpy as np
import pytest
from scipy import stats as scipy_stats

from cdgrad.study.statistics import across_cells


def two_arms(rng, seeds=(8, 12, 5)):
    # whole numbers of errors, so that there are ties
    base = [rng.integers(0, 12, size=n) / 2 for n in seeds]
    return [b + rng.integers(-3, 2, size=len(b)) / 2 for b in base], base


def test_the_probability_of_improvement_is_that_of_rliable():
    # rliable: for each task U / (N M) of scipy's Mann-Whitney test, then the mean over tasks; higher scores
    # are better there, so the errors are negated.
    arm, base = two_arms(np.random.default_rng(0))
    per_task = [
        scipy_stats.mannwhitneyu(-a, -b, alternative="greater").statistic / (len(a) * len(b))
        for a, b in zip(arm, base, strict=True)
    ]
    assert across_cells.probability_of_improvement(arm, base).value == pytest.approx(np.mean(per_task))
    assert across_cells.probability_of_improvement(base, base).value == 0.5


def test_its_interval_is_that_of_a_bootstrap_by_hand():
    arm, base = two_arms(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    resampled = []
    for _ in range(3000):
        drawn = [rng.integers(0, len(a), size=len(a)) for a in arm]  # within each cell, both arms together
        cells = [
            np.mean((a[i][:, None] < b[i]) + 0.5 * (a[i][:, None] == b[i]))
            for a, b, i in zip(arm, base, drawn, strict=True)
        ]
        resampled.append(np.mean(cells))
    interval = across_cells.probability_of_improvement(arm, base).interval
    assert interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.012)


def test_the_mean_difference_counts_each_cell_once():
    mean = across_cells.mean_difference([[1.0, 3.0], [0.0] * 50])
    assert mean.value == 1.0
    assert mean.interval == pytest.approx((0.5, 1.5))  # of the first cell's resamples: 1, 2 or 3, halved


def test_the_interval_of_the_mean_is_that_of_the_normal_limit():
    rng = np.random.default_rng(3)
    cells = [rng.normal(0, 1, size=200), rng.normal(5, 2, size=100)]
    mean = across_cells.mean_difference(cells)
    error = np.sqrt(sum(x.var() / len(x) for x in cells)) / 2
    assert mean.interval == pytest.approx((mean.value - 1.96 * error, mean.value + 1.96 * error), abs=0.02)


def test_a_profile_is_the_mean_over_cells_of_the_distribution_functions():
    profile = across_cells.performance_profile([[0.0, 1.0], [2.0, 2.0, 2.0]], [-1, 0, 1, 2])
    assert profile.share == pytest.approx([0, 0.25, 0.5, 1])
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    # rliable: the share of runs above tau, averaged over tasks, where higher is better
    scores = -np.random.default_rng(4).normal(size=(20, 3))
    theirs = [np.mean(np.mean(scores > tau, axis=0)) for tau in (-0.5, 0.3)]
    ours = across_cells.performance_profile(list(-scores.T), [0.5 - 1e-9, -0.3 - 1e-9]).share
    assert ours == pytest.approx(theirs)


def test_the_band_of_a_profile_has_its_level():
    # A resample of two seeds has 0, 1 or 2 of them at or below 0, with probabilities 1/4, 1/2 and 1/4.
    bands = [across_cells.performance_profile([[0.0, 1.0]], [0.0], level) for level in (0.95, 0.4)]
    assert [(*band.low, *band.high) for band in bands] == [(0, 1), (0.5, 0.5)]


def test_resamples_keep_every_cell_and_its_number_of_seeds():
    weights = across_cells.stratified_weights([3, 7], 100)
    assert [of_cell.shape for of_cell in weights] == [(100, 3), (100, 7)]
    assert all(of_cell.sum(1) == pytest.approx(1) for of_cell in weights)


def test_cells_without_seeds_are_refused():
    with pytest.raises(ValueError, match="one value or more for each cell"):
        across_cells.mean_difference([[1.0], []])
    with pytest.raises(ValueError, match="one value or more for each cell"):
        across_cells.mean_difference([])
    with pytest.raises(ValueError, match=r"expected the same seeds, got \[2\] and \[1\]"):
        across_cells.probability_of_improvement([[1.0, 2.0]], [[1.0]])

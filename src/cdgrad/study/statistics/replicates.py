"""Comparisons whose interval contains the noise of tuning: several independent searches per arm.

The random-effects model d_rs = mu + u_r + e_rs: in search r, both arms are tuned from scratch, and the chosen
settings are compared over final seeds s of their own. u_r is the luck of the searches, e_rs that of the
seeds. One search, however many final seeds it has, estimates mu + u_1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cdgrad.study.statistics.paired import (
    LEVEL,
    Array,
    Interval,
    mean_interval,
    scipy_stats,
    standard_deviation,
)

_ROUNDING = 1e-12  # of the mean of a search, relative to the largest difference


@dataclass(frozen=True)
class Replicated:
    """A comparison over independent searches.

    Attributes:
        means: the mean difference of each search.
        mean: their mean, in points.
        interval: of the true mean difference, over searches and seeds.
        p: of no difference, by the t-test that belongs to the interval; nan where all means are equal: their
            standard deviation of 0 says nothing about other searches.
        tuning_sd: estimated standard deviation of u_r.
        seed_sd: standard deviation of e_rs, pooled within searches; nan with one seed per search.
        one_search: the interval as if all seeds came from one search.
    """

    means: Array
    mean: float
    interval: Interval
    p: float
    tuning_sd: float
    seed_sd: float
    one_search: Interval


def compare_replicates(differences: Sequence[ArrayLike], level: float = LEVEL) -> Replicated:
    """The comparison of two arms from the paired differences of each search.

    The interval is mean +- t s / sqrt(R), with s the standard deviation of the R searches' mean differences
    and t of Student's distribution with R - 1 degrees of freedom. With equally many seeds in each search and
    normal u and e it is exact for any tuning_sd: the means are independent with variance tuning_sd^2 +
    seed_sd^2 / S. A bootstrap over three searches is not: it covers in far fewer studies than it says
    (``benchmarks/interval_coverage.py``). The standard deviations are those of the analysis of variance, that
    of tuning cut off at 0.

    Raises:
        ValueError: fewer than 2 searches, or one without seeds.
    """
    searches = [np.asarray(d, dtype=np.float64) for d in differences]
    if len(searches) < 2 or any(d.ndim != 1 or not len(d) for d in searches):
        raise ValueError(f"expected 2 or more searches with seeds, got {[d.shape for d in searches]}")
    means = np.array([d.mean() for d in searches])
    if np.ptp(means) <= _ROUNDING * max(float(np.abs(d).max()) for d in searches):
        means = np.full_like(means, np.median(means))
    error = standard_deviation(means) / math.sqrt(len(means))
    mean = float(means.mean())
    p = 2 * float(scipy_stats.t.sf(abs(mean) / error, len(means) - 1)) if error else math.nan
    tuning_sd, seed_sd = _components(searches, means)
    return Replicated(
        means=means,
        mean=mean,
        interval=mean_interval(means, level),
        p=p,
        tuning_sd=tuning_sd,
        seed_sd=seed_sd,
        one_search=mean_interval(np.concatenate(searches), level),
    )


def _components(searches: Sequence[Array], means: Array) -> tuple[float, float]:
    """The standard deviations between and within searches, by the method of moments."""
    counts = np.array([len(d) for d in searches])
    total, freedom = int(counts.sum()), int(counts.sum()) - len(counts)
    if not freedom:
        return math.nan, math.nan
    within = sum(float(np.square(d - d.mean()).sum()) for d in searches) / freedom
    grand = float(counts @ means) / total
    between = float(counts @ np.square(means - grand)) / (len(counts) - 1)
    size = (total - float(counts @ counts) / total) / (len(counts) - 1)
    return math.sqrt(max(0.0, (between - within) / size)), math.sqrt(within)

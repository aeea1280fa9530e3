"""Statistics of paired comparisons: pure functions of arrays, such as errors in percent.

d is the vector of paired differences, arm minus baseline, one entry a seed, in the unit of the values (points
where they are in percent). Negative is better where small values are, as with errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

scipy_stats: Any = import_module("scipy.stats")  # it ships no types
scipy_optimize: Any = import_module("scipy.optimize")
Array = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
RESAMPLES = 9999  # of the bootstrap
_EXACT_PAIRS = 17  # of the sign-flip test: 2^16 flips, the first sign being fixed
_AT_ONCE = 4096  # flips that are computed with in float64
_ROUNDING = 1e-12  # of a difference of two values, relative to the larger of them


class Interval(NamedTuple):
    """A confidence interval; both ends nan where there are too few values."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline over the seeds that both have.

    Attributes:
        differences: arm minus baseline, seed by seed.
        mean: their mean.
        sd: their sample standard deviation.
        interval: of the mean, by Student's t.
        bootstrap: of the mean, by the BCa bootstrap.
        median: the median difference, which a few diverged runs do not move.
        median_interval: of the median, from order statistics.
        p: sign-flip permutation test of no difference, two-sided.
        correlation: of the two arms' values over the seeds; how much pairing reduces the variance.
        win_rate: share of seeds on which the arm has the better value; ties count half.
    """

    differences: Array
    mean: float
    sd: float
    interval: Interval
    bootstrap: Interval
    median: float
    median_interval: Interval
    p: float
    correlation: float
    win_rate: float

    @property
    def pairs(self) -> int:
        """Number of seeds."""
        return len(self.differences)


def compare(arm: ArrayLike, baseline: ArrayLike, *, larger_is_better: bool = False) -> Comparison:
    """The comparison of two arms' values, such as errors in percent, entry k of both from the same seed.

    Args:
        arm: the values of one arm.
        baseline: those of the arm that it is compared with.
        larger_is_better: whether the larger value is the better one, as with an accuracy.

    Raises:
        ValueError: the two have different lengths, or none.
    """
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected two vectors of the same seeds, got shapes {a.shape} and {b.shape}")
    d = differences_of(a, b)
    return Comparison(
        differences=d,
        mean=_mean(d),
        sd=standard_deviation(d),
        interval=mean_interval(d),
        bootstrap=bca_interval(d),
        median=float(np.median(d)),
        median_interval=median_interval(d),
        p=sign_flip_p(d),
        correlation=correlation(a, b),
        win_rate=float(np.mean(np.where(d == 0, 0.5, (d > 0) == larger_is_better))),
    )


def differences_of(arm: ArrayLike, baseline: ArrayLike) -> Array:
    """arm - baseline, elementwise, without rounding errors where they would be taken for a spread.

    5.3 - 5.2 and 4.3 - 4.2 differ in the last bit: differences that are equal but for that are made equal,
    and those that are 0 but for that are made 0. Each pair has its own rounding error: one pair of huge
    values, of a run that diverged, says nothing about the others.
    """
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    d, rounding = a - b, _ROUNDING * np.maximum(np.abs(a), np.abs(b))
    d[np.abs(d) <= rounding] = 0.0
    middle = float(np.median(d))
    return np.full_like(d, middle) if (np.abs(d - middle) <= rounding).all() else d


def _mean(d: Array) -> float:
    """The mean; 0 where the values cancel but for rounding errors, so that it has no sign."""
    total = float(d.sum())
    return 0.0 if abs(total) <= _ROUNDING * float(np.abs(d).sum()) else total / len(d)


def standard_deviation(values: ArrayLike) -> float:
    """The sample standard deviation; nan for a single value, and exactly 0 where all are equal."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return math.nan
    return float(x.std(ddof=1)) if np.ptp(x) else 0.0


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """mean +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Interval(math.nan, math.nan)
    half = float(scipy_stats.t.ppf((1 + level) / 2, len(x) - 1)) * standard_deviation(x) / math.sqrt(len(x))
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


def bca_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean, from a fixed random seed.

    It assumes no normal distribution, but resampling few values understates their variance: of normal
    values its 95 % interval covers the mean in 84 % of samples of 5, 90 % of 10 and 94 % of 30
    (``benchmarks/interval_coverage.py``; the t interval in 95 to 96 %): where the two differ, believe the
    wider one. Where all values are equal it is that value.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Interval(math.nan, math.nan)
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]))
    rng = np.random.default_rng(0)
    interval = scipy_stats.bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", rng=rng
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def median_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Distribution-free interval of the median: two order statistics, by the binomial distribution.

    It covers in at least `level` of samples, of 10 values in 97.9 %, and no matter how far away the
    outliers are. Both ends nan where even the extremes are too few to cover: below 6 values at 95 %.
    """
    x = np.asarray(values, dtype=np.float64)
    interval = scipy_stats.quantile_test(x, q=0.0, p=0.5).confidence_interval(level)
    ends = Interval(float(interval.low), float(interval.high))
    return ends if np.isfinite(ends).all() else Interval(math.nan, math.nan)


def sign_flip_p(differences: ArrayLike) -> float:
    """p of "the differences are symmetric about 0": the share of sign flips with as large a |sum|.

    Exact up to 17 pairs. Beyond, from 65,535 random flips of a fixed seed and the observed one, with a
    standard error of 0.0009 at p = 0.05. No value is below `smallest_p`.

    Not `scipy.stats.permutation_test`: it counts ties up to a rounding error relative to the observed
    mean. Errors on a test set are multiples of one over its size, so that sums tie often, and where the
    observed one rounds to nearly 0, ties are lost: in 2 % of small discrete samples its p was off, by up to
    0.1. Here the rounding error is relative to the largest possible sum.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return math.nan
    least = abs(float(d.sum())) - 1e-12 * float(np.abs(d).sum())
    flips = sign_flips(len(d))
    blocks = (flips[start : start + _AT_ONCE] for start in range(0, len(flips), _AT_ONCE))
    return sum(int((np.abs(block @ d) >= least).sum()) for block in blocks) / len(flips)


def smallest_p(pairs: int) -> float:
    """The smallest p that `sign_flip_p` can give: all differences of one sign. 2 / 2^n up to 17 pairs."""
    return 2.0 ** (1 - min(pairs, _EXACT_PAIRS)) if pairs > 1 else math.nan


def fewest_tested_pairs(tests: int, level: float = LEVEL) -> int | None:
    """The fewest pairs whose `smallest_p`, times so many tests, is below 1 - `level`; None: no number is."""
    return next((n for n in range(2, _EXACT_PAIRS + 1) if smallest_p(n) * tests < 1 - level), None)


@lru_cache(maxsize=2)
def sign_flips(pairs: int) -> NDArray[np.int8]:
    """All flips of n signs but for the common one, or 2^16, the unflipped first: (flips, n), a byte each."""
    count = 2 ** (min(pairs, _EXACT_PAIRS) - 1)
    signs, random = np.ones((count, pairs), dtype=np.int8), np.random.default_rng(0)
    for start in range(0, count, _AT_ONCE):
        block = signs[start : start + _AT_ONCE]
        if pairs <= _EXACT_PAIRS:
            numbers = np.arange(start, start + len(block))
            block[(numbers[:, None] & 2 ** np.arange(pairs)) != 0] = -1
        else:
            block[random.random(block.shape) < 0.5] = -1
    signs[0] = 1
    return signs


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation; nan for fewer than 3 pairs, or where one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Holm's adjusted p-values: sorted ascending, p_(k) times (m - k + 1), made monotone, at most 1.

    nan stays nan and counts as no test.

    Args:
        p_values: of the tests that were made.
        tests: m, the number of tests that were planned; the number of p-values unless given. Tests without a
            p, because no run of theirs has finished, count as if their p were 1.

    Raises:
        ValueError: fewer tests were planned than made.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    m = len(tested) if tests is None else tests
    if m < len(tested):
        raise ValueError(f"expected at least as many tests as p-values, got {m} for {len(tested)}")
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, p * (m - rank)))
        adjusted[index] = highest
    return adjusted


def paired_power(pairs: int, difference: float, sd: float, level: float = LEVEL) -> float:
    """Chance that a two-sided paired t-test shows a true mean `difference`.

    The square of the statistic follows the non-central F distribution with 1 and n - 1 degrees of
    freedom and non-centrality n (difference / sd)^2. (The two tails of the non-central t sum to the
    same; scipy's far one is nan where it should vanish.)
    """
    if pairs < 2:
        return 0.0
    if difference == 0:
        return 1 - level
    threshold = scipy_stats.t.ppf((1 + level) / 2, pairs - 1) ** 2
    return float(scipy_stats.ncf.sf(threshold, 1, pairs - 1, pairs * (difference / sd) ** 2))


def required_pairs(difference: float, sd: float, power: float = POWER) -> int:
    """The fewest seeds for which `paired_power` reaches `power`, were `sd` the true standard deviation."""
    if sd == 0:
        return 2
    return fewest_pairs_with(lambda pairs: paired_power(pairs, difference, sd), power)


def fewest_pairs_with(power_of: Callable[[int], float], power: float) -> int:
    """The fewest seeds, from 2 on, for which `power_of`, which grows with their number, reaches `power`."""
    low, high = 1, 2
    while power_of(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def detectable_difference(pairs: int, sd: float, power: float = POWER) -> float:
    """The smallest true difference, in the unit of `sd`, that n seeds show with `power`, were `sd` true.

    The inverse of `paired_power`. nan for fewer than 2 pairs.
    """
    if pairs < 2 or math.isnan(sd):
        return math.nan

    def lacking(effect: float) -> float:
        return paired_power(pairs, effect, 1.0) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return sd * float(scipy_optimize.brentq(lacking, 0.0, high))


def is_estimated(comparison: Comparison) -> bool:
    """Whether the differences say how sure their mean is: there is an interval, and they are not all equal.

    Equal differences come from arms that do not differ, or from seeds that change nothing, far more often
    than from a method.
    """
    return math.isfinite(comparison.interval.low) and comparison.sd > 0


def excludes_zero(interval: Interval) -> bool:
    """Whether 0 lies outside the interval; False where there is none."""
    return interval.low > 0 or interval.high < 0


def is_shown(comparison: Comparison, p: float) -> bool:
    """A difference is called one where p < 0.05, corrected, and the interval of unequal values excludes 0."""
    return p < 1 - LEVEL and is_estimated(comparison) and excludes_zero(comparison.interval)

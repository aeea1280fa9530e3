"""Statistics of paired comparisons: pure functions of arrays. Errors in percent, differences in points.

d is the vector of paired differences, arm minus baseline, one entry a seed: negative is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

scipy_stats: Any = import_module("scipy.stats")  # it ships no types
Array = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
RESAMPLES = 9999


class Interval(NamedTuple):
    """A confidence interval; both ends nan where there are too few values."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline over the seeds that both have.

    Attributes:
        differences: arm minus baseline, in points, seed by seed.
        mean: their mean.
        sd: their sample standard deviation, in points.
        interval: of the mean, by Student's t.
        bootstrap: of the mean, by the BCa bootstrap.
        p: sign-flip permutation test of no difference, two-sided.
        correlation: of the two arms' errors over the seeds; what pairing bought.
        wins: share of seeds on which the arm has the smaller error; ties count half.
    """

    differences: Array
    mean: float
    sd: float
    interval: Interval
    bootstrap: Interval
    p: float
    correlation: float
    wins: float

    @property
    def pairs(self) -> int:
        """Number of seeds."""
        return len(self.differences)


def compare(arm: ArrayLike, baseline: ArrayLike) -> Comparison:
    """The comparison of two arms' errors, in percent, entry k of both from the same seed.

    Raises:
        ValueError: the two have different lengths, or none.
    """
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected two vectors of the same seeds, got shapes {a.shape} and {b.shape}")
    d = a - b
    return Comparison(
        differences=d,
        mean=float(d.mean()),
        sd=spread(d),
        interval=mean_interval(d),
        bootstrap=bca_interval(d),
        p=sign_flip_p(d),
        correlation=correlation(a, b),
        wins=float(np.mean(np.where(d == 0, 0.5, d < 0))),
    )


def spread(values: ArrayLike) -> float:
    """The sample standard deviation; nan for a single value."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.std(ddof=1)) if len(x) > 1 else math.nan


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """mean +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Interval(math.nan, math.nan)
    half = float(scipy_stats.t.ppf((1 + level) / 2, len(x) - 1)) * spread(x) / math.sqrt(len(x))
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


def bca_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean, from a fixed random seed.

    It assumes no normal distribution, but is too narrow for few values: with 10 it covers about 90 %.
    Where all values are equal it is that value.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Interval(math.nan, math.nan)
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]))
    rng = np.random.default_rng(0)
    found = scipy_stats.bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", rng=rng
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def sign_flip_p(differences: ArrayLike) -> float:
    """p of "the differences are symmetric about 0": the share of sign flips with as large a mean.

    Exact up to 13 pairs, and from 9,999 random flips of a fixed seed beyond. The smallest possible
    value is 2 / 2^n, so that fewer than 6 pairs cannot reach 0.05.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return math.nan
    rng = np.random.default_rng(0)
    return float(
        scipy_stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, rng=rng
        ).pvalue
    )


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation; nan for fewer than 3 pairs, or where one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: sorted ascending, p_(k) times (m - k + 1), made monotone, at most 1.

    nan stays nan and counts as no test.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = highest
    return adjusted


def paired_power(pairs: int, difference: float, sd: float, level: float = LEVEL) -> float:
    """Chance that a two-sided paired t-test shows a true mean `difference`.

    The statistic follows the non-central t distribution with n - 1 degrees of freedom and
    non-centrality sqrt(n) difference / sd.
    """
    if pairs < 2:
        return 0.0
    df, shift = pairs - 1, math.sqrt(pairs) * abs(difference) / sd
    threshold = scipy_stats.t.ppf((1 + level) / 2, df)
    return float(scipy_stats.nct.sf(threshold, df, shift) + scipy_stats.nct.cdf(-threshold, df, shift))


def required_pairs(difference: float, sd: float, power: float = POWER) -> int:
    """The fewest seeds for which `paired_power` reaches `power`, were `sd` the true spread."""
    if sd == 0:
        return 2
    low, high = 1, 2
    while paired_power(high, difference, sd) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if paired_power(middle, difference, sd) >= power else (middle, high)
    return high


def verdict(name: str, baseline: str, comparison: Comparison, p: float) -> str:
    """The comparison in plain words; `p` is corrected for the number of arms.

    A difference is called one where p < 0.05 and the t interval excludes 0. Otherwise the sentence
    gives the largest difference, in either direction, that the interval leaves open.
    """
    if comparison.pairs < 2:
        return f"{name} against {baseline}: {comparison.pairs} pair of seeds; a comparison needs at least 2."
    low, high = comparison.interval
    if p < 1 - LEVEL and (low > 0 or high < 0):
        more, size = ("fewer", -comparison.mean) if comparison.mean < 0 else ("more", comparison.mean)
        between = sorted((abs(low), abs(high)))
        return (
            f"{name} makes {size:.2f} points {more} errors than {baseline} "
            f"(95 % interval {between[0]:.2f} to {between[1]:.2f}, p = {p:.2g})."
        )
    bound = math.ceil(100 * max(abs(low), abs(high))) / 100
    return (
        f"{name} against {baseline}: no difference is shown (p = {p:.2g}), and no difference larger than "
        f"{bound:.2f} points is supported at 95 %."
    )

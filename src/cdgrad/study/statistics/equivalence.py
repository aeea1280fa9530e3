"""Equivalence: whether a difference is smaller than a margin that was written down before.

That no difference is shown does not show that there is none. Two one-sided t-tests (TOST) show it.

Source: D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
assessing the equivalence of average bioavailability", Journal of Pharmacokinetics and Biopharmaceutics 15
(1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cdgrad.study.statistics.paired import (
    LEVEL,
    POWER,
    Interval,
    fewest_pairs_with,
    mean_interval,
    scipy_stats,
    standard_deviation,
)
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p


@dataclass(frozen=True)
class Equivalence:
    """The outcome of the two tests.

    Attributes:
        margin: the difference, in the unit of the values, below which two arms count as equivalent.
        p: the larger one of the two one-sided p; nan for fewer than 2 values.
        interval: the t interval at 1 - 2 alpha, 90 % for alpha = 5 %; or the anytime-valid one, at 1 - alpha.
            It lies within (-margin, margin) exactly where p < alpha.
        shown: whether p < alpha.
    """

    margin: float
    p: float
    interval: Interval
    shown: bool


def equivalence(differences: ArrayLike, margin: float, level: float = LEVEL) -> Equivalence:
    """Test mean <= -margin and mean >= margin, each with the paired t-test at alpha = 1 - `level`.

    With a = sqrt(n) (mean + margin) / s and b = sqrt(n) (mean - margin) / s, p = max(P(T > a), P(T < b)),
    T of Student's distribution with n - 1 degrees of freedom. Rejecting both at alpha keeps the probability
    of calling a difference of `margin` or more equivalent at alpha; no correction for two tests is needed.
    The margin must have been chosen without these differences.

    Raises:
        ValueError: the margin is not a positive number.
    """
    _check(margin)
    d = np.asarray(differences, dtype=np.float64)
    alpha, interval = 1 - level, mean_interval(d, 2 * level - 1)
    if len(d) < 2:
        return Equivalence(margin, math.nan, interval, False)
    mean, error = float(d.mean()), standard_deviation(d) / math.sqrt(len(d))
    if error == 0:
        p = 0.0 if abs(mean) < margin else 1.0
    else:
        tails = scipy_stats.t.sf([(mean + margin) / error, (margin - mean) / error], len(d) - 1)
        p = float(max(tails))
    return Equivalence(margin, p, interval, p < alpha)


def anytime_equivalence(differences: ArrayLike, margin: float, level: float = LEVEL) -> Equivalence:
    """As `equivalence`, valid after any number of looks: the anytime-valid interval lies within the margin.

    p is the larger one of `anytime_p` at -margin and at margin, 1 where the mean is not between them. The
    interval ever excludes the true mean with probability 1 - `level` at most, so arms that differ by the
    margin or more are called equivalent no more often.

    Raises:
        ValueError: the margin is not a positive number.
    """
    _check(margin)
    d, interval = np.asarray(differences, dtype=np.float64), anytime_interval(differences, level)
    if math.isnan(interval.low):
        return Equivalence(margin, math.nan, interval, False)
    p = max(anytime_p(d, -margin), anytime_p(d, margin)) if abs(float(d.mean())) < margin else 1.0
    return Equivalence(margin, p, interval, -margin < interval.low and interval.high < margin)


def _check(margin: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"expected a positive margin, got {margin}")


def equivalence_power(
    pairs: int, margin: float, sd: float, difference: float = 0.0, level: float = LEVEL
) -> float:
    """The probability that `equivalence` is shown, if the true mean is `difference` and the true standard
    deviation `sd`.

    The integral over the distribution of s of the probability that the mean lies within margin - t s /
    sqrt(n) of 0.
    """
    if pairs < 2:
        return 0.0
    if sd == 0:
        return float(abs(difference) < margin)
    freedom, root = pairs - 1, math.sqrt(pairs)
    t = float(scipy_stats.t.ppf(level, freedom))
    # s / sd at the midpoints of 2,000 intervals of equal probability
    s = np.sqrt(scipy_stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom)
    room = margin / sd * root - t * s
    center = difference / sd * root
    inside = scipy_stats.norm.cdf(room - center) - scipy_stats.norm.cdf(-room - center)
    return float(np.mean(np.where(room > 0, inside, 0)))


def equivalence_pairs(margin: float, sd: float, power: float = POWER) -> int:
    """The fewest seeds for which `equivalence_power` reaches `power`, if the arms do not differ at all."""
    return fewest_pairs_with(lambda pairs: equivalence_power(pairs, margin, sd), power)

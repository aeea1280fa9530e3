"""Measure whether the intervals and tests of a study do what they say: python benchmarks/interval_coverage.py

Simulated studies with known differences: a look after every seed, replicated searches, several cells, and a
planted null, small and medium effect. The planted effects are a self-test with the statistics of W. Du, "When
+1% is not enough: a paired bootstrap protocol for evaluating small improvements", arXiv 2511.19794 (BCa
bootstrap and sign-flip test over paired seeds), whose three scenarios they follow. Writes
results/coverage.json beside this file, in about three minutes on one core.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import stats as scipy_stats

from cdgrad.study.statistics.across_cells import stratified_weights
from cdgrad.study.statistics.equivalence import equivalence
from cdgrad.study.statistics.paired import bca_interval, mean_interval, sign_flip_p
from cdgrad.study.statistics.replicates import compare_replicates
from cdgrad.study.statistics.sequential import anytime_multiplier, anytime_reach, fewest_pairs

STUDIES = 2000
MOST = 100  # seeds
EFFECTS = {"none": 0.0, "small": 0.2, "medium": 0.5}  # mean difference over its standard deviation
MARGIN = 0.5  # of equivalence, in standard deviations


def normal(rng, shape):
    return rng.normal(size=shape), 0.0


def heavy_tails(rng, shape):
    """Student's t with 3 degrees of freedom, as where a run diverges now and then."""
    return rng.standard_t(3, size=shape), 0.0


def skewed(rng, shape):
    """Exponential, a skewness of 2."""
    return rng.exponential(size=shape), 1.0


def few_images(rng, shape):
    """Differences of two equal arms' errors on 360 test images: multiples of 0.28 points, many of them
    tied.
    """
    chance = np.clip(rng.normal(0.05, 0.015, size=shape), 0.005, 1)
    return 100 / 360 * (rng.binomial(360, chance) - rng.binomial(360, chance)), 0.0


def running(x):
    """Mean, standard deviation and skewness of the first n values, for every n: three arrays like x."""
    n = np.arange(1, x.shape[1] + 1)
    centred = x - x[:, :1]
    first, second, third = ((centred**k).cumsum(1) / n for k in (1, 2, 3))
    m2 = np.maximum(second - first**2, 0)
    m3 = third - 3 * first * second + 2 * first**3
    varies = m2 > 1e-12 * second
    skew = np.divide(m3, m2**1.5, out=np.zeros_like(m3), where=varies)
    skew *= np.sqrt(n * (n - 1)) / np.maximum(n - 2, 1)
    return first + x[:, :1], np.where(varies, np.sqrt(m2 * n / np.maximum(n - 1, 1)), 0), skew


def looks(draw, rng):
    """Studies that look after every seed, from the first interval to the last seed."""
    x, truth = draw(rng, (STUDIES, MOST))
    first = fewest_pairs()
    n = np.arange(first, MOST + 1)
    mean, sd, skew = (v[:, first - 1 :] for v in running(x))
    below, above = (reach * sd for reach in anytime_reach(n, skew))
    symmetric = anytime_multiplier(n) * sd / np.sqrt(n)
    fixed = scipy_stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    off = mean - truth
    # Equal values bound nothing yet: `anytime_interval` gives no interval there.
    anytime = ((off <= below) & (-off <= above)) | (sd == 0)
    at_symmetric, at_fixed = (np.abs(off) <= symmetric) | (sd == 0), np.abs(off) <= fixed
    stop, rows = stopping(off, below, above), np.arange(STUDIES)
    at = [pairs - first for pairs in (10, 30, 100)]
    width = np.divide(below + above, 2 * symmetric, out=np.ones_like(sd), where=sd > 0)
    return {
        "distribution": draw.__name__.replace("_", " "),
        "anytime interval, at every look": anytime.all(1).mean(),
        "anytime interval, where the study stops": anytime[rows, stop].mean(),
        "symmetric anytime interval, at every look": at_symmetric.all(1).mean(),
        "width over the symmetric one at 10, 30, 100": [float(np.median(width[:, k])) for k in at],
        "t interval, at every look": at_fixed.all(1).mean(),
        "t interval, at the last seed": at_fixed[:, -1].mean(),
        "seeds used, mean": n[stop].mean(),
    }


def stopping(mean, below, above):
    """The first look at which the interval is narrower than one standard deviation or excludes 0, else the
    last.
    """
    bounded = below + above > 0
    stop = bounded & ((below + above < 1) | (mean > below) | (-mean > above))
    return np.where(stop.any(1), stop.argmax(1), mean.shape[1] - 1)


def covers(intervals, truth=0.0):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def searches(replicates, seeds, tuning_sd, rng):
    """Studies with independent searches; the standard deviation over seeds is 1, the true difference is 0."""
    luck = tuning_sd * rng.normal(size=(STUDIES, replicates, 1))
    x = luck + rng.normal(size=(STUDIES, replicates, seeds))
    replicated = [compare_replicates(list(d)) for d in x]
    weights = stratified_weights([replicates], 2000)[0]
    boot = np.quantile(x.mean(2) @ weights.T, [0.025, 0.975], axis=1).T
    return {
        "searches": replicates,
        "seeds of each": seeds,
        "tuning over seed standard deviation": tuning_sd,
        "random effects": covers(f.interval for f in replicated),
        "cluster bootstrap": covers(boot),
        "as if from one search": covers(f.one_search for f in replicated),
        "one search alone": covers(map(mean_interval, x[:, 0])),
    }


def tuned(replicates, rng, trials=6, tuning_seeds=2, seeds=10):
    """Studies that tune two equal arms; the error grows with the square of the rate's distance from the best.

    It is 1 point a decade away. A trial draws a rate from the two decades around the best and is evaluated by
    the mean of `tuning_seeds` errors, of standard deviation 0.5, like the final seeds'. The arms differ by
    luck alone.
    """
    rates = rng.uniform(-1, 1, size=(2, STUDIES, replicates, trials))
    observed = rates**2 + rng.normal(size=rates.shape) * 0.5 / np.sqrt(tuning_seeds)
    chosen = np.take_along_axis(rates, observed.argmin(-1)[..., None], -1)
    errors = chosen**2 + 0.5 * rng.normal(size=(2, STUDIES, replicates, seeds))
    x = errors[0] - errors[1]
    replicated = [compare_replicates(list(d)) for d in x]
    return {
        "searches": replicates,
        "trials": trials,
        "seeds of each": seeds,
        "standard deviation of tuning, points": float((chosen[0] ** 2 - chosen[1] ** 2).std()),
        "standard deviation of a seed, points": 0.5 * np.sqrt(2),
        "random effects": covers(f.interval for f in replicated),
        "as if from one search": covers(f.one_search for f in replicated),
        "one search alone": covers(map(mean_interval, x[:, 0])),
        "one search with all seeds": covers(
            map(
                mean_interval,
                (chosen[0] ** 2 - chosen[1] ** 2)[:, 0]
                + rng.normal(size=(STUDIES, replicates * seeds)) * 0.5 * np.sqrt(2),
            )
        ),
    }


def planted(name, effect, pairs, rng):
    """How often each rule shows a planted difference."""
    x = rng.normal(-effect, 1, size=(STUDIES, pairs))
    p = np.array([sign_flip_p(d) for d in x])
    intervals = np.array([mean_interval(d) for d in x])
    boot = np.array([bca(d) for d in x])
    first, n = fewest_pairs(), np.arange(fewest_pairs(), pairs + 1)
    mean, sd, skew = (v[:, first - 1 :] for v in running(x))
    below, above = anytime_reach(n, skew)
    seen = (mean > below * sd) | (-mean > above * sd)
    return {
        "effect": name,
        "mean over standard deviation": effect,
        "seeds": pairs,
        "shown (sign-flip p < 0.05 and t interval)": ((p < 0.05) & outside(intervals)).mean(),
        "shown (sign-flip p < 0.05 and BCa interval)": ((p < 0.05) & outside(boot)).mean(),
        "anytime interval excludes 0 at the last seed": seen[:, -1].mean(),
        "anytime interval excludes 0 at any look": seen.any(1).mean(),
        f"equivalence within {MARGIN} standard deviations": float(
            np.mean([equivalence(d, MARGIN).shown for d in x])
        ),
    }


def bca(d):
    """`stats.bca_interval` with fewer resamples, for time."""
    result = scipy_stats.bootstrap((d,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(0))
    return result.confidence_interval


def outside(intervals):
    return (intervals[:, 0] > 0) | (intervals[:, 1] < 0)


def across(cells, seeds, rng):
    """The percentile interval of the mean over cells, whose standard deviations range from 0.5 to 2."""
    x = rng.normal(size=(STUDIES, cells, seeds)) * np.linspace(0.5, 2, cells)[:, None]
    weights = stratified_weights([seeds] * cells, 2000)
    resampled = np.mean([x[:, c] @ weights[c].T for c in range(cells)], axis=0)
    return {
        "cells": cells,
        "seeds of each": seeds,
        "stratified bootstrap of the mean": covers(np.quantile(resampled, [0.025, 0.975], axis=1).T),
    }


def bootstrap(pairs, rng):
    """The intervals of a mean of normal differences, looked at once."""
    x = rng.normal(size=(STUDIES, pairs))
    return {
        "pairs": pairs,
        "BCa bootstrap": covers(np.array([bca_interval(d) for d in x])),
        "t interval": covers(np.array([mean_interval(d) for d in x])),
    }


def main(out):
    rng = [np.random.default_rng(seed) for seed in range(6)]  # one for each part
    draws = (normal, heavy_tails, skewed, few_images)
    record: dict[str, Any] = {
        "what": f"share of {STUDIES} simulated studies; intervals of 95 %, standard error 0.005 at 0.95",
        "standard deviation of the mixture": 1.0,
        "looks": [looks(draw, rng[0]) for draw in draws],
        "searches": [searches(r, s, sd, rng[1]) for r, s in ((3, 10), (5, 10)) for sd in (0.0, 0.3, 1.0)],
        "tuned": [tuned(r, rng[2]) for r in (3, 5)],
        "cells": [across(c, s, rng[3]) for c in (3, 10) for s in (5, 10, 30)],
        "planted": [planted(name, e, n, rng[4]) for name, e in EFFECTS.items() for n in (10, 17, 50)],
        "bootstrap": [bootstrap(n, rng[5]) for n in (5, 10, 30)],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    out.write_text(json.dumps(record, indent=1, default=float) + "\n")
    for part in ("looks", "searches", "tuned", "cells", "planted", "bootstrap"):
        for row in record[part]:
            print(
                "  ".join(
                    f"{k}: {v if isinstance(v, str | list) else round(float(v), 3)}" for k, v in row.items()
                )
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "coverage.json")

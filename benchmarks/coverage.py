"""Measure whether the intervals and tests of a study do what they say: python benchmarks/coverage.py

Simulated studies with known differences: a look after every seed, replicated searches, several cells, and a
planted null, small and medium effect. The planted effects are a self-test with the statistics of W. Du, "When
+1% is not enough: a paired bootstrap protocol for evaluating small improvements", arXiv 2511.19794 (BCa
bootstrap and sign-flip test over paired seeds), whose three scenarios they follow. Writes
results/coverage.json beside this file, in about two minutes on one core.
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
from cdgrad.study.statistics.paired import mean_interval, sign_flip_p
from cdgrad.study.statistics.replicates import compare_replicates
from cdgrad.study.statistics.sequential import anytime_multiplier, fewest_pairs

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
    """The mean and the standard deviation of the first n values, for every n: two arrays like x."""
    n = np.arange(1, x.shape[1] + 1)
    mean = x.cumsum(1) / n
    centred = x - x[:, :1]
    square = (centred**2).cumsum(1) - n * (mean - x[:, :1]) ** 2
    return mean, np.sqrt(np.maximum(square, 0) / np.maximum(n - 1, 1))


def looks(draw, rng):
    """Studies that look after every seed, from the first bounded interval to the last seed."""
    x, truth = draw(rng, (STUDIES, MOST))
    first = fewest_pairs()
    n = np.arange(first, MOST + 1)
    mean, sd = (v[:, first - 1 :] for v in running(x))
    half = anytime_multiplier(n) * sd / np.sqrt(n)
    fixed = scipy_stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    off = np.abs(mean - truth)
    # Equal values bound nothing yet: `anytime_interval` gives no interval there.
    anytime, at_fixed = (off <= half) | (sd == 0), off <= fixed
    stop, rows = stopping(mean - truth, half), np.arange(STUDIES)
    return {
        "distribution": draw.__name__.replace("_", " "),
        "anytime interval, at every look": anytime.all(1).mean(),
        "anytime interval, where the study stops": anytime[rows, stop].mean(),
        "t interval, at every look": at_fixed.all(1).mean(),
        "t interval, at the last seed": at_fixed[:, -1].mean(),
        "seeds used, mean": n[stop].mean(),
    }


def stopping(mean, half):
    """The first look at which the interval is narrower than one standard deviation or excludes 0, else the
    last.
    """
    stop = (2 * half < 1) & (half > 0) | (np.abs(mean) > half) & (half > 0)
    return np.where(stop.any(1), stop.argmax(1), mean.shape[1] - 1)


def covers(intervals, truth=0.0):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def searches(replicates, seeds, tuning_sd, rng):
    """Studies with independent searches; the standard deviation over seeds is 1, the true difference is 0."""
    luck = tuning_sd * rng.normal(size=(STUDIES, replicates, 1))
    x = luck + rng.normal(size=(STUDIES, replicates, seeds))
    found = [compare_replicates(list(d)) for d in x]
    weights = stratified_weights([replicates], 2000)[0]
    boot = np.quantile(x.mean(2) @ weights.T, [0.025, 0.975], axis=1).T
    return {
        "searches": replicates,
        "seeds of each": seeds,
        "tuning over seed standard deviation": tuning_sd,
        "random effects": covers(f.interval for f in found),
        "cluster bootstrap": covers(boot),
        "as if from one search": covers(f.one_search for f in found),
        "one search alone": covers(map(mean_interval, x[:, 0])),
    }


def planted(name, effect, pairs, rng):
    """How often each rule shows a planted difference."""
    x = rng.normal(-effect, 1, size=(STUDIES, pairs))
    p = np.array([sign_flip_p(d) for d in x])
    intervals = np.array([mean_interval(d) for d in x])
    boot = np.array([bca(d) for d in x])
    first, n = fewest_pairs(), np.arange(fewest_pairs(), pairs + 1)
    mean, sd = (v[:, first - 1 :] for v in running(x))
    seen = np.abs(mean) > anytime_multiplier(n) * sd / np.sqrt(n)
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
    found = scipy_stats.bootstrap((d,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(0))
    return found.confidence_interval


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


def main(out):
    rng = np.random.default_rng(0)
    record: dict[str, Any] = {
        "what": f"share of {STUDIES} simulated studies; intervals of 95 %, standard error 0.005 at 0.95",
        "standard deviation of the mixture": 1.0,
        "looks": [looks(draw, rng) for draw in (normal, heavy_tails, skewed, few_images)],
        "searches": [searches(r, s, sd, rng) for r, s in ((3, 10), (5, 10)) for sd in (0.0, 0.3, 1.0)],
        "cells": [across(c, s, rng) for c in (3, 10) for s in (5, 10, 30)],
        "planted": [planted(name, e, n, rng) for name, e in EFFECTS.items() for n in (10, 17, 50)],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    out.write_text(json.dumps(record, indent=1, default=float) + "\n")
    for part in ("looks", "searches", "cells", "planted"):
        for row in record[part]:
            print(
                "  ".join(f"{k}: {v if isinstance(v, str) else round(float(v), 3)}" for k, v in row.items())
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "coverage.json")

"""What docs/statistics.md says of the simulated studies, computed from the record of `benchmarks/interval_coverage.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scipy import stats

from cdgrad.study.statistics.sequential import anytime_multiplier, fewest_pairs

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "coverage.json"


def looks() -> str:
    """How often the intervals cover at every look."""
    rows = {row["distribution"]: row for row in _record()["looks"]}
    anytime, symmetric, fixed = (
        {name: row[f"{kind} interval, at every look"] for name, row in rows.items()}
        for kind in ("anytime", "symmetric anytime", "t")
    )
    wider = dict(
        zip((10, 30, 100), rows["normal"]["width over the symmetric one at 10, 30, 100"], strict=False)
    )
    return (
        "In 2,000 simulated studies with a look after each seed from 6 to 100, the interval held at every look in\n"
        f"{_percent(anytime['normal'])} of those with normal differences, {_percent(anytime['heavy tails'])} with heavy "
        "tails (Student's t with 3 degrees of\n"
        f"freedom), {_percent(anytime['few images'])} with errors on 360 images and {_percent(anytime['skewed'])} with "
        "exponential ones (skewness 2); the interval from $e_n(t)$\n"
        f"alone in {_percent(symmetric['skewed'])} of the last, and the t interval in {_percent(min(fixed.values()))} to "
        f"{_percent(max(fixed.values()))}. For normal differences the guarantee is\n"
        f"exact, and the interval {100 * (wider[10] - 1):.0f} % wider than the one from $e_n(t)$ alone at 10 seeds and "
        f"{100 * (wider[30] - 1):.0f} % at 30. It is {_over_t(10, wider[10]):.1f} times as wide as the t interval at 10 seeds "
        f"and {_over_t(100, wider[100]):.1f} times\nat 100; there is none below {fewest_pairs()} seeds.\n"
    )


def _over_t(pairs: int, wider: float) -> float:
    """The width of the anytime-valid interval over that of the t interval, for normal differences."""
    return wider * float(anytime_multiplier(pairs)) / float(stats.t.ppf(0.975, pairs - 1))


def bootstrap() -> str:
    """How often the bootstrap interval covers with few seeds."""
    held = {row["pairs"]: row["BCa bootstrap"] for row in _record()["bootstrap"]}
    return (
        "**It shows** whether skewed differences distort the t interval. **It does not** compensate for few seeds:\n"
        "resampling few values understates their variance. In 2,000 simulated studies with normal differences, its 95 %\n"
        f"interval held in {_percent(held[5])} with 5 seeds, {_percent(held[10])} with 10 and {_percent(held[30])} with 30. Where the two\n"
        "intervals differ, trust the wider one.\n"
    )


def searches() -> str:
    """What one search hides."""
    record = _record()
    (wide,) = (
        row
        for row in record["searches"]
        if row["searches"] == 3 and row["tuning over seed standard deviation"] == 1
    )
    tuned = record["tuned"][0]
    share = tuned["standard deviation of tuning, points"] / tuned["standard deviation of a seed, points"]
    return (
        "With a standard deviation between searches as large as between seeds, and 3 searches of 10 seeds, the\n"
        f"interval over the searches holds in {_percent(wide['random effects'])} of simulated studies, the one that "
        "takes all seeds as one search's\n"
        f"in {_percent(wide['as if from one search'])}, that of one search alone in {_percent(wide['one search alone'])}, "
        f"and a bootstrap of the searches in {_percent(wide['cluster bootstrap'])}.\n\n"
        f"How large is it in practice? Let two equal arms each choose the best of {tuned['trials']} learning rates, "
        "each evaluated by\n"
        "2 seeds, where a decade from the best rate costs two standard deviations of a seed. Then the standard deviation\n"
        f"between searches is {share:.1f} of that of a paired difference, and the interval of one search with all 30 "
        "seeds holds\n"
        f"in {_percent(tuned['one search with all seeds'])} of studies; that over 3 searches of 10 in "
        f"{_percent(tuned['random effects'])}.\n"
    )


def _record() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

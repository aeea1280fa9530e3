"""What README and docs say of the quickstart, computed from the record of its runs."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import numpy as np

from cdgrad.study.statistics import paired as stats

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "quickstart" / "runs.csv"


@cache
def errors(record: Path) -> dict[str, list[float]]:
    """Errors in percent by arm, in the order of the seeds."""
    with record.open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    return {arm: [float(r["error"]) for r in runs if r["arm"] == arm] for arm in ("sgd", "reweighted")}


def comparison() -> stats.Comparison:
    """The re-weighted arm against SGD.

    Raises:
        ValueError: the record shows a difference, which the text around the numbers denies.
    """
    by_arm = errors(RUNS)
    found = stats.compare(by_arm["reweighted"], by_arm["sgd"])
    if not found.interval.low < 0 < found.interval.high:
        raise ValueError("the quickstart shows a difference: rewrite the sentences in tools/quickstart.py")
    return found


def result() -> str:
    """Mean, interval and p, as in ``-0.10 points (95 % interval -0.60 to +0.40, p = 0.61)``."""
    c = comparison()
    low, high = c.interval
    return f"{c.mean:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, p = {c.p:.2g})"


def readme() -> str:
    """The result in one paragraph."""
    c = comparison()
    return (
        f"In [these runs](docs/quickstart/runs.csv), {c.pairs} seeds, the re-weighted metric changes the test\n"
        f"error of SGD by {result()}.\n"
        f"No difference is shown; with {c.pairs} seeds, only a true difference of {_detectable(c)} points or more\n"
        "would reliably have been. On another processor or with other kernels single seeds give other errors,\n"
        "because rounding moves a run as far as another seed does; the mean moves within its interval.\n"
    )


def card() -> str:
    """The row of the method card."""
    return (
        "| study | compared | paired difference, points of error | verdict |\n| --- | --- | --- | --- |\n"
        "| [quickstart](start.md#what-the-output-means): digits, small CNN, SGD, "
        f"{comparison().pairs} seeds, seven learning rates per arm "
        f"| `reweighted:lam=3` and no metric | {result().replace(' points', '')} | no difference is shown |\n"
        "| [the evidence](evidence.md): digits, subsets of CIFAR-10 (JPEG) and Tiny ImageNet, small networks, "
        "equal tuning budgets | all metrics and axes, and attempts to improve them | see its tables "
        "| no reduction of the error is shown, on average or at equal learning rates |\n"
    )


def start() -> str:
    """The table of the start page, and what it says."""
    c = comparison()
    low, high = c.interval
    lines = ["| | mean | 95 % interval | standard deviation |", "| --- | ---: | ---: | ---: |"]
    for arm, values in errors(RUNS).items():
        ends = stats.mean_interval(values)
        sd = float(np.std(values, ddof=1))
        lines.append(
            f"| error of `{arm}`, % | {np.mean(values):.2f} | {ends.low:.2f} to {ends.high:.2f} | {sd:.2f} |"
        )
    lines.append(f"| paired difference, points | {c.mean:+.2f} | {low:+.2f} to {high:+.2f} | {c.sd:.2f} |")
    words = "fewer" if c.mean < 0 else "more"
    return "\n".join(lines) + (
        "\n\nWhat it says, from [these runs](quickstart/runs.csv):\n\n"
        f"- Over {c.pairs} seeds `reweighted` made {abs(c.mean):.2f} points {words} errors on average, and the\n"
        f"  interval includes zero. A sign-flip test gives p = {c.p:.2g}: if the metric had no effect at all,\n"
        f"  {100 * c.p:.0f} % of such studies would show a mean difference of this size or more.\n"
        "  *No difference is shown.*\n"
        "- The interval states what the study says about the size of the effect. Differences in favor of the\n"
        f"  metric beyond {-low:.2f} points, and against it beyond {high:.2f}, are not supported.\n"
        f"- With {c.pairs} seeds and this standard deviation, a true difference of {_detectable(c)} points would\n"
        f"  be detected with 80 % power. Detecting 0.2 points would take {stats.required_pairs(0.2, c.sd)} seeds.\n"
        "  The null result describes the power of this study; it does not prove equality.\n"
        f"- The correlation of the pairs is {c.correlation:.2f}: the seed draws the split, which both arms share,\n"
        "  and pairing removes that part of the variance.\n"
    )


def _detectable(c: stats.Comparison) -> str:
    return f"{math.ceil(100 * stats.detectable_difference(c.pairs, c.sd)) / 100:.2f}"

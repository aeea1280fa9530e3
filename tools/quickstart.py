"""What README and docs say of the quickstart, computed from the record of its runs."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import numpy as np

from cdgrad.study.records.run import Run
from cdgrad.study.report.figures.differences import paired_differences
from cdgrad.study.report.figures.drawing import WIDTH
from cdgrad.study.spec import load
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats
from cdgrad.tables import markdown

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "quickstart" / "runs.csv"


@cache
def errors(record: Path) -> dict[str, list[float]]:
    """Errors in percent by arm, in the order of the seeds."""
    with record.open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    arms = ("sgd", "reweighted", "rounded")
    return {arm: [float(r["error"]) for r in runs if r["arm"] == arm] for arm in arms}


def comparison() -> stats.Comparison:
    """The re-weighted arm against SGD.

    Raises:
        ValueError: the record shows a difference, which the text around the numbers denies.
    """
    by_arm = errors(RUNS)
    comparison = stats.compare(by_arm["reweighted"], by_arm["sgd"])
    if not comparison.interval.low < 0 < comparison.interval.high:
        raise ValueError("the quickstart shows a difference: rewrite the sentences in tools/quickstart.py")
    return comparison


def floor() -> stats.Comparison:
    """SGD with other rounding errors against SGD."""
    by_arm = errors(RUNS)
    return stats.compare(by_arm["rounded"], by_arm["sgd"])


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
        f"would reliably have been. A copy of SGD that only rounds otherwise differs by {_size(floor())} points in a seed, on\n"
        f"average, and by {floor().mean:+.2f} in the mean. Single seeds need not survive a change of kernel or CPU (one run\n"
        f"of [the evidence](docs/evidence.md#do-old-records-still-hold) moved by {_moved()} points);\n"
        "a mean over seeds can move within its interval.\n"
    )


def card(evidence: str) -> str:
    """The results on the method card; `evidence` is the verdict of the page of that name."""
    return (
        f"- [Quickstart](start.md#what-the-output-means): digits, small CNN, SGD, {comparison().pairs} seeds, seven learning rates "
        f"per arm; `reweighted:lam=3` against no metric.\n  *No difference is shown*: {result()}.\n"
        "- [The evidence](evidence.md): digits, subsets of CIFAR-10 (JPEG) and Tiny ImageNet, small networks, equal tuning budgets; all "
        f"metrics and axes, and attempts to improve\n  them. *{evidence[0].upper()}{evidence[1:].replace('. ', '.* ', 1)}\n"
    )


def start() -> str:
    """The table of the start page, and what it says."""
    c = comparison()
    low, high = c.interval
    rows: list[tuple[str, str, str, str]] = []
    for arm, values in errors(RUNS).items():
        ends = stats.mean_interval(values)
        sd = float(np.std(values, ddof=1))
        interval = f"{ends.low:.2f} to {ends.high:.2f}"
        rows.append((f"error of `{arm}`, %", f"{np.mean(values):.2f}", interval, f"{sd:.2f}"))
    same = floor()
    for title, each in (("paired difference, points", c), ("the same of `rounded`", same)):
        interval = f"{each.interval.low:+.2f} to {each.interval.high:+.2f}"
        rows.append((title, f"{each.mean:+.2f}", interval, f"{each.sd:.2f}"))
    lines = markdown(("", "mean", "95 % interval", "standard deviation"), rows, "lrrr")
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
        "- `rounded` is `sgd` with other rounding errors: equal in exact arithmetic. In a seed it differs from `sgd` by\n"
        f"  {_size(same)} points on average, `reweighted` by {_size(c)}: at this learning rate, rounding explains little of it. It can\n"
        f"  explain more: one run of [the evidence](evidence.md#do-old-records-still-hold) moved by {_moved()} points when another CPU\n"
        "  executed it again. Single seeds need not survive a change of kernel or CPU, and a\n"
        "  mean over seeds can move within its interval.\n"
        f"- The correlation of the pairs is {c.correlation:.2f}: the seed draws the split, which both arms share,\n"
        "  and pairing removes that part of the variance.\n"
    )


def _moved() -> str:
    """The largest difference of an error, in points, of a run that was executed again and differs by rounding."""
    from evidence.build import again

    repeats, _ = again.read()
    return f"{max(abs(run.error - run.error_now) for run in repeats if run.rounds):.2f}"


def figure(width: float = WIDTH) -> bytes:
    """The paired differences, as the report draws them; `width` is in inches."""
    with RUNS.open(encoding="utf-8") as file:
        runs = [_run(row) for row in csv.DictReader(file)]
    drawing = paired_differences(Results.of(load("quickstart"), runs), "")
    drawing.figure.set_figwidth(width)
    return drawing.svg()


def _run(row: dict[str, str]) -> Run:
    """What the figure needs of a row of the record."""
    return Run(
        cell=row["cell"],
        arm=row["arm"],
        trial=None,
        seed=int(row["seed"]),
        status="ok",
        error=float(row["error"]),
        evaluated=row["evaluated"],
        values={},
        epochs=[],
        measures={},
        config={},
        fingerprint=row["fingerprint"],
        environment={},
        started=row["started"],
        seconds=float(row["seconds"]),
    )


def _size(c: stats.Comparison) -> str:
    """The mean absolute difference of a seed, in points."""
    return f"{float(np.abs(c.differences).mean()):.2f}"


def _detectable(c: stats.Comparison) -> str:
    return f"{math.ceil(100 * stats.detectable_difference(c.pairs, c.sd)) / 100:.2f}"

"""The comparisons in plain words."""

from __future__ import annotations

import math

from cdgrad.study.statistics.equivalence import Equivalence, equivalence
from cdgrad.study.statistics.paired import LEVEL, Comparison, is_shown
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import fewest_pairs


def verdicts(results: Results, cell: str) -> list[str]:
    baseline = results.spec.baseline
    tell = verdict_after_looks if results.spec.until else verdict
    label = "Holm p" if results.tested > 1 else "p"
    if results.spec.replicates > 1:
        tell = verdict_over_searches
    sentences = [
        tell(arm, baseline, found, p, label)
        for arm, (found, p) in results.in_cell(cell).items()
        if arm not in results.spec.rounding_arms
    ]
    if margin := results.spec.margin:
        sentences += [
            equivalence_verdict(arm, baseline, equivalence(found.differences, margin))
            for arm, (found, _) in results.in_cell(cell).items()
            if found.pairs > 1
        ]
    return sentences


def across_cells(results: Results) -> list[str]:
    """A sentence an arm: in which cells it was better, worse or neither."""
    sentences: list[str] = []
    for arm in results.spec.compared_arms:
        found = {cell: compared for (cell, a), compared in results.comparisons.items() if a == arm}
        if not found:
            continue
        shown = {cell: c.mean for cell, (c, p) in found.items() if is_shown(c, p)}
        bounds = [
            max(map(abs, c.interval))
            for cell, (c, _) in found.items()
            if cell not in shown and math.isfinite(c.interval.low)
        ]
        sentence = (
            f"{arm} against {results.spec.baseline}, {len(found)} cells: "
            f"fewer errors in {_named([cell for cell, mean in shown.items() if mean < 0])}, "
            f"more in {_named([cell for cell, mean in shown.items() if mean > 0])}, "
            f"no difference shown in {len(found) - len(shown)}"
        )
        if bounds:
            bound = rounded_up(max(bounds))
            sentence += f", where no difference larger than {bound} points is supported at 95 %"
        sentences.append(f"{sentence}.")
    return sentences


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"


def verdict(name: str, baseline: str, comparison: Comparison, p: float, label: str = "p") -> str:
    """The comparison in plain words: mean, both ends of its interval, and p under its name.

    Args:
        name: the arm.
        baseline: the arm that it is compared with.
        comparison: their paired differences.
        p: after the correction for the number of comparisons.
        label: what p is, such as ``"Holm p"``.
    """
    if comparison.pairs < 2:
        return f"{name} against {baseline}: {comparison.pairs} pair of seeds; a comparison needs at least 2."
    pairs, (low, high) = comparison.pairs, comparison.interval
    numbers = f"95 % interval {low:+.2f} to {high:+.2f}, {label} = {p:.2g}"
    if is_shown(comparison, p):
        more, size = ("fewer", -comparison.mean) if comparison.mean < 0 else ("more", comparison.mean)
        return (
            f"{name} has {size:.2f} points {more} errors than {baseline} "
            f"(mean difference {comparison.mean:+.2f} points, {numbers})."
        )
    if comparison.sd == 0:
        return (
            f"{name} against {baseline}: all {pairs} differences are {comparison.mean:+.2f} points, so that "
            f"nothing can be estimated; check that the arm changes the training."
        )
    # Where a diverged run or two stretch the interval, the test of signs may still see a difference.
    but = ", although p is below 0.05: the interval includes 0" if p < 1 - LEVEL else ""
    return (
        f"{name} against {baseline}: no difference is shown{but} (mean difference {comparison.mean:+.2f} "
        f"points, {numbers}); differences outside the interval are not supported."
    )


def verdict_over_searches(
    name: str, baseline: str, comparison: Comparison, p: float, label: str = "p"
) -> str:
    """As `verdict`, of a comparison whose independent differences are the means of searches."""
    if comparison.pairs < 2:
        return f"{name} against {baseline}: 1 search has finished pairs; a comparison needs at least 2."
    return verdict(name, baseline, comparison, p, label)


def verdict_after_looks(name: str, baseline: str, comparison: Comparison, p: float, label: str = "p") -> str:
    """As `verdict`, of a comparison whose interval and `p` are valid after any number of looks."""
    if not math.isfinite(comparison.interval.low):
        return (
            f"{name} against {baseline}: {comparison.pairs} pairs of seeds; an anytime-valid interval needs "
            f"{fewest_pairs()} or more with different results."
        )
    if is_shown(comparison, p):
        return verdict(name, baseline, comparison, p, label)
    return (
        f"{name} against {baseline}: no difference is shown ({label} = {p:.2g}), and no difference larger "
        f"than {rounded_up(max(map(abs, comparison.interval)))} points is supported at 95 % after any "
        f"number of looks; {comparison.pairs} seeds."
    )


def equivalence_verdict(name: str, baseline: str, found: Equivalence) -> str:
    """Whether two arms differ by less than the margin."""
    margin, p = f"{found.margin:g} points", f"(TOST p = {found.p:.2g})"
    if found.shown:
        return f"{name} and {baseline} are equivalent within {margin} {p}."
    return f"{name} and {baseline}: equivalence within {margin} is not shown {p}."


def rounded_up(value: float) -> str:
    """Rounded up to two decimals: a bound must not be understated."""
    return f"{math.ceil(100 * value - 1e-9) / 100:.2f}"

"""The comparisons in plain words."""

from __future__ import annotations

import math

from cdgrad.study.report.changes import has_later_margin
from cdgrad.study.report.words import Words, counted, in_cell, on_its_side, words
from cdgrad.study.statistics.equivalence import Equivalence, anytime_equivalence, equivalence
from cdgrad.study.statistics.paired import LEVEL, Comparison, excludes_zero, is_estimated, is_shown
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import fewest_pairs

IN_PERCENT = Words()  # an error in percent, on images


def verdicts(results: Results, cell: str) -> list[str]:
    """A sentence for each comparison of a cell, and one for each test of equivalence."""
    spec, w = results.spec, words(results)
    sentence = verdict_after_looks if spec.until else verdict
    label = "Holm p" if results.spec.tests > 1 else "p"
    if spec.replicates > 1:
        sentence = verdict_over_searches
    compared = [(name, spec.contrasts[name], c, p) for name, (c, p) in results.in_cell(cell).items()]
    if spec.contrasts and not compared:
        pair = "any two arms" if spec.all_pairs else f"{spec.reference_arm} and another arm"
        return [f"Nothing is compared{in_cell(cell)}: no seed has finished in {pair}."]
    sentences = [
        sentence(arm, reference, c, p, label, w)
        for name, (arm, reference), c, p in compared
        if name in spec.tested_contrasts
    ]
    sentences += [
        f"{arm} against {reference}: no seed has finished in both arms."
        for name, (arm, reference) in spec.tested_contrasts.items()
        if (cell, name) not in results.comparisons
    ]
    if spec.margin:
        test, kind = (anytime_equivalence, "anytime p") if spec.until else (equivalence, "TOST p")
        sentences += [
            equivalence_verdict(
                arm, reference, test(c.differences, spec.margin), kind, w, later=has_later_margin(results)
            )
            for _, (arm, reference), c, _ in compared
            if c.pairs > 1 and c.sd > 0
        ]
    return sentences


def across_cells(results: Results) -> list[str]:
    """A sentence a comparison: in which cells the arm was better, worse or neither, or nothing is known."""
    w, sampled = words(results), "searches" if results.sampled == "search" else "seeds"
    sentences: list[str] = []
    for name, (arm, reference) in results.spec.tested_contrasts.items():
        cells = {cell: compared for (cell, n), compared in results.comparisons.items() if n == name}
        shown = {cell: w.is_better(c.mean) for cell, (c, p) in cells.items() if is_shown(c, p)}
        unknown = [cell for cell, (c, _) in cells.items() if not is_estimated(c)]
        missing = [cell for cell in results.spec.cells if cell not in cells]
        intervals = {cell: c.interval for cell, (c, _) in cells.items() if cell not in (*shown, *unknown)}
        bounds = [max(map(abs, interval)) for interval in intervals.values()]
        sentence = (
            f"{arm} against {reference}, {counted(len(results.spec.cells), 'cell')}: "
            f"better in {_named([cell for cell, better in shown.items() if better])}, "
            f"worse in {_named([cell for cell, better in shown.items() if not better])}, "
            f"no difference shown in {len(bounds)}"
        )
        if bounds:
            bound = w.rounded_up(max(bounds))
            sentence += f", where no difference larger than {bound} is supported at 95 %"
        if beside := [cell for cell, interval in intervals.items() if excludes_zero(interval)]:
            sentence += f", although the interval, uncorrected, excludes 0 in {_named(beside)}"
        if unknown:
            sentence += f"; too few {sampled} or equal differences in {_named(unknown)}"
        if missing:
            sentence += f"; no seed has finished in both arms in {_named(missing)}"
        sentences.append(f"{sentence}.")
    return sentences


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"


def verdict(
    name: str,
    baseline: str,
    comparison: Comparison,
    p: float,
    label: str = "p",
    w: Words = IN_PERCENT,
    kind: str = "interval",
) -> str:
    """The comparison in plain words: mean, both ends of its interval, and p under its name.

    Args:
        name: the arm.
        baseline: the arm that it is compared with.
        comparison: their paired differences.
        p: after the correction for the number of comparisons.
        label: what p is, such as ``"Holm p"``.
        w: names and numbers of the measure; an error in percent unless given.
        kind: what the interval is, such as ``"anytime-valid interval"``.
    """
    if comparison.pairs < 2:
        return f"{name} against {baseline}: {comparison.pairs} pair of seeds; a comparison needs at least 2."
    mean = w.difference(comparison.mean)
    if comparison.sd == 0:
        return (
            f"{name} against {baseline}: all {comparison.pairs} differences are {mean}, so that "
            f"nothing can be estimated; {why_equal(comparison)}."
        )
    interval, shown_p = w.interval(comparison.interval, "+"), f"{label} = {p_in_words(p)}"
    numbers = f"mean difference {mean}, 95 % {kind} {interval}, {shown_p}"
    if is_shown(comparison, p):
        better = "better" if w.is_better(comparison.mean) else "worse"
        size = w.difference(abs(comparison.mean), "")
        lower = "lower" if comparison.mean < 0 else "higher"
        return f"{name} is {better} than {baseline}: its {w.measure.name} is {size} {lower} ({numbers})."
    sentence = f"{name} against {baseline}: no difference is shown"
    if excludes_zero(comparison.interval):
        return (
            f"{sentence}: the interval, uncorrected, excludes 0, but {label} is not below 0.05 ({numbers})."
        )
    # If diverged runs widen the interval, the sign-flip test may still reject.
    but = ", although p is below 0.05: the interval includes 0" if p < 1 - LEVEL else ""
    return f"{sentence}{but} ({numbers}); differences outside the interval are not supported."


def why_equal(comparison: Comparison) -> str:
    """What to check where all differences of a comparison are equal."""
    if comparison.mean:
        return "check that every seed trains a network of its own"
    return "check that the arm changes the training"


def p_in_words(p: float) -> str:
    """Two significant digits, or more beside 0.05, on whose side the text is."""
    return on_its_side(p, 2, "g")


def verdict_over_searches(
    name: str, baseline: str, comparison: Comparison, p: float, label: str = "p", w: Words = IN_PERCENT
) -> str:
    """As `verdict`, of a comparison whose independent differences are the means of searches."""
    if comparison.pairs < 2:
        return f"{name} against {baseline}: 1 search has finished pairs; a comparison needs at least 2."
    return verdict(name, baseline, comparison, p, label, w)


def verdict_after_looks(
    name: str, baseline: str, comparison: Comparison, p: float, label: str = "p", w: Words = IN_PERCENT
) -> str:
    """As `verdict`, of a comparison whose interval and `p` are valid after any number of looks."""
    if comparison.sd > 0 and not math.isfinite(comparison.interval.low):
        return (
            f"{name} against {baseline}: {comparison.pairs} pairs of seeds; an anytime-valid interval needs "
            f"{fewest_pairs()} or more with different results."
        )
    return verdict(name, baseline, comparison, p, label, w, "anytime-valid interval")


def equivalence_verdict(
    name: str, baseline: str, test: Equivalence, label: str, w: Words, *, later: bool = False
) -> str:
    """Whether two arms differ by less than the margin.

    `label` is what p is; `later` says that the margin was set after runs were recorded.
    """
    margin = w.amount(test.margin)
    p = "(too few seeds)" if math.isnan(test.p) else f"({label} = {p_in_words(test.p)})"
    if test.shown and later:
        return (
            f"{name} and {baseline} differ by less than {margin} {p}, but that margin was set after runs "
            "were recorded, so that equivalence is not shown."
        )
    if test.shown:
        return f"{name} and {baseline} are equivalent within {margin} {p}."
    return f"{name} and {baseline}: equivalence within {margin} is not shown {p}."

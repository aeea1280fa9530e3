"""The comparisons in plain words."""

from __future__ import annotations

import math

from cdgrad.study.report.words import Words, words
from cdgrad.study.statistics.equivalence import Equivalence, equivalence
from cdgrad.study.statistics.paired import LEVEL, Comparison, is_shown
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import fewest_pairs

IN_PERCENT = Words()  # an error in percent, on images


def verdicts(results: Results, cell: str) -> list[str]:
    """A sentence for each comparison of a cell, and one for each test of equivalence."""
    spec, w = results.spec, words(results)
    sentence = verdict_after_looks if spec.until else verdict
    label = "Holm p" if results.tested > 1 else "p"
    if spec.replicates > 1:
        sentence = verdict_over_searches
    compared = [(name, spec.contrasts[name], c, p) for name, (c, p) in results.in_cell(cell).items()]
    sentences = [
        sentence(arm, reference, c, p, label, w)
        for name, (arm, reference), c, p in compared
        if name in spec.tested_contrasts
    ]
    if spec.margin:
        sentences += [
            equivalence_verdict(arm, reference, equivalence(c.differences, spec.margin), w)
            for _, (arm, reference), c, _ in compared
            if c.pairs > 1
        ]
    return sentences


def across_cells(results: Results) -> list[str]:
    """A sentence a comparison: in which cells the arm was better, worse or neither."""
    w = words(results)
    sentences: list[str] = []
    for name, (arm, reference) in results.spec.tested_contrasts.items():
        cells = {cell: compared for (cell, n), compared in results.comparisons.items() if n == name}
        if not cells:
            continue
        shown = {cell: w.is_better(c.mean) for cell, (c, p) in cells.items() if is_shown(c, p)}
        bounds = [
            max(map(abs, c.interval))
            for cell, (c, _) in cells.items()
            if cell not in shown and math.isfinite(c.interval.low)
        ]
        sentence = (
            f"{arm} against {reference}, {len(cells)} cells: "
            f"better in {_named([cell for cell, better in shown.items() if better])}, "
            f"worse in {_named([cell for cell, better in shown.items() if not better])}, "
            f"no difference shown in {len(cells) - len(shown)}"
        )
        if bounds:
            bound = w.rounded_up(max(bounds))
            sentence += f", where no difference larger than {bound} is supported at 95 %"
        sentences.append(f"{sentence}.")
    return sentences


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"


def verdict(
    name: str, baseline: str, comparison: Comparison, p: float, label: str = "p", w: Words = IN_PERCENT
) -> str:
    """The comparison in plain words: mean, both ends of its interval, and p under its name.

    Args:
        name: the arm.
        baseline: the arm that it is compared with.
        comparison: their paired differences.
        p: after the correction for the number of comparisons.
        label: what p is, such as ``"Holm p"``.
        w: names and numbers of the measure; an error in percent unless given.
    """
    if comparison.pairs < 2:
        return f"{name} against {baseline}: {comparison.pairs} pair of seeds; a comparison needs at least 2."
    pairs, mean = comparison.pairs, w.difference(comparison.mean)
    numbers = (
        f"mean difference {mean}, 95 % interval {w.interval(comparison.interval, '+')}, {label} = {p:.2g}"
    )
    if is_shown(comparison, p):
        better = "better" if w.is_better(comparison.mean) else "worse"
        size = w.difference(abs(comparison.mean), "")
        lower = "lower" if comparison.mean < 0 else "higher"
        return f"{name} is {better} than {baseline}: its {w.measure.name} is {size} {lower} ({numbers})."
    if comparison.sd == 0:
        return (
            f"{name} against {baseline}: all {pairs} differences are {mean}, so that "
            f"nothing can be estimated; check that the arm changes the training."
        )
    # If diverged runs widen the interval, the sign-flip test may still reject.
    but = ", although p is below 0.05: the interval includes 0" if p < 1 - LEVEL else ""
    return (
        f"{name} against {baseline}: no difference is shown{but} ({numbers}); differences outside the "
        "interval are not supported."
    )


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
    if not math.isfinite(comparison.interval.low):
        return (
            f"{name} against {baseline}: {comparison.pairs} pairs of seeds; an anytime-valid interval needs "
            f"{fewest_pairs()} or more with different results."
        )
    if is_shown(comparison, p):
        return verdict(name, baseline, comparison, p, label, w)
    return (
        f"{name} against {baseline}: no difference is shown ({label} = {p:.2g}), and no difference larger "
        f"than {w.rounded_up(max(map(abs, comparison.interval)))} is supported at 95 % after any "
        f"number of looks; {comparison.pairs} seeds."
    )


def equivalence_verdict(name: str, baseline: str, test: Equivalence, w: Words = IN_PERCENT) -> str:
    """Whether two arms differ by less than the margin."""
    margin, p = f"{test.margin:g} {w.of_difference}".rstrip(), f"(TOST p = {test.p:.2g})"
    if test.shown:
        return f"{name} and {baseline} are equivalent within {margin} {p}."
    return f"{name} and {baseline}: equivalence within {margin} is not shown {p}."

"""All cells of a study, or of several, in one table and one figure: each cell counts the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cdgrad.study.report.document import Figure, Table
from cdgrad.study.report.figures.differences import better_and_worse, reference_words
from cdgrad.study.report.figures.drawing import (
    WIDTH,
    Drawing,
    canvas,
    difference_ticks,
    legend,
    look_of_contrast,
)
from cdgrad.study.report.tables import row_name
from cdgrad.study.report.words import words
from cdgrad.study.statistics.across_cells import (
    Array,
    mean_difference,
    performance_profile,
    probability_of_improvement,
)
from cdgrad.study.statistics.results import Results

_THRESHOLDS = 200


def parts(results: Results) -> list[Table | Figure]:
    """The table and the figure of comparisons that two cells or more have; empty where none does."""
    return [_table(results), _profile(results)] if _pairs(results) else []


def has_parts(results: Results) -> bool:
    """Whether a comparison has two cells or more."""
    return bool(_pairs(results))


def _pairs(results: Results) -> dict[str, list[tuple[Array, Array]]]:
    """For each comparison of two cells or more the results of both arms in each cell, by seed."""
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for name in results.spec.tested_contrasts:
        cells = [results.pairs(cell, name) for cell in results.spec.cells]
        arrays = [(np.array(a), np.array(b)) for seeds, a, b in cells if len(seeds) > 1]
        if len(arrays) > 1:
            pairs[name] = arrays
    return pairs


def _table(results: Results) -> Table:
    w, sign = words(results), results.spec.measure.sign
    rows: list[Sequence[str]] = []
    for name, cells in _pairs(results).items():
        mean = mean_difference([of_arm - of_reference for of_arm, of_reference in cells])
        better = probability_of_improvement([sign * a for a, _ in cells], [sign * b for _, b in cells])
        low, high = (f"{100 * end:.0f}" for end in better.interval)
        rows.append(
            (
                name,
                w.number(mean.value, "+"),
                w.interval(mean.interval, "+"),
                f"{100 * better.value:.0f} %",
                f"{low} to {high} %",
                str(len(cells)),
            )
        )
    return Table(
        f"Over all cells: mean difference{w.in_points}, and probability of improvement",
        (row_name(results), "mean", "95 %", "P(better)", "95 %", "cells"),
        rows,
        "each cell counts the same; P(better): that a run of the arm is better than a run of its reference, "
        "each of a random seed; intervals by the bootstrap of seeds within their cell, too short with few "
        "seeds, and of these cells alone: they do not extend to others (arXiv 2108.13264)"
        + "; they do not contain the noise of tuning"
        * (results.spec.replicates > 1),
        align="lrrrrr",
    )


def _profile(results: Results) -> Drawing:
    """The share of pairs whose difference is at most tau, averaged over cells, a line a comparison."""
    spec, w = results.spec, words(results)
    differences = {name: [a - b for a, b in cells] for name, cells in _pairs(results).items()}
    # A diverged run must not hide the others: the axis ends where 1 in 50 differences lies beyond.
    every = np.concatenate([d for cells in differences.values() for d in cells])
    low, high = (float(end) for end in np.quantile(every, [0.02, 0.98]))
    reach = max(high - low, 1e-12)
    thresholds = np.linspace(min(low, 0) - 0.05 * reach, max(high, 0) + 0.05 * reach, _THRESHOLDS)
    figure, (axes,) = canvas(3.8)
    axes.axvline(0, color="0.4", linewidth=1)
    for name, cells in differences.items():
        color, _, dash = look_of_contrast(spec, name)
        profile = performance_profile(cells, thresholds)
        axes.plot(thresholds, 100 * profile.share, dash, color=color, linewidth=1.8, label=name)
        axes.fill_between(
            thresholds, 100 * profile.low, 100 * profile.high, color=color, alpha=0.18, linewidth=0
        )
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylim(0, 100)
    difference_ticks(axes.xaxis, WIDTH - 0.8)
    to = reference_words(spec)
    axes.set_xlabel(f"paired difference{to}" + (f", in {w.of_difference}" if w.of_difference else ""))
    axes.set_ylabel("pairs at or below it, %")
    better_and_worse(axes, w)
    legend(figure, axes)
    return Drawing(
        "performance_profile",
        figure,
        f"Share of the pairs with a difference{to} of at most the value on the axis, averaged over cells.",
        f"Performance profile: share of the pairs whose difference{to} is at most the value on the axis; "
        "each cell counts the same; bands are pointwise 95 % intervals by the bootstrap of seeds within "
        "their cell. A line above 50 % just left of 0: most differences are below zero.",
    )

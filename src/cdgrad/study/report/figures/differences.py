"""The figures of paired differences: seed by seed in a cell, and over all cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from cdgrad.study.report.figures.drawing import (
    WIDTH,
    Drawing,
    canvas,
    difference_ticks,
    file_name,
    look_of_contrast,
    row_names,
    width_of,
    wrapped,
)
from cdgrad.study.report.words import Words, words
from cdgrad.study.spec import Spec
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Compared, Place, Results

_BAND = 0.42  # of a row, for the marks of its seeds
_STEP = 0.09  # of a row, from a mark to the next one below it


def paired_differences(results: Results, cell: str) -> Drawing:
    """A row an arm: every seed's difference to the baseline, their mean and its 95 % interval."""
    spec, compared = results.spec, results.in_cell(cell)
    figure, (axes,) = canvas(1.4 + 0.7 * len(compared))
    ends = _ends(results, [(cell, name) for name in compared], seeds_too=True)
    cut_off = ""
    for row, (name, (comparison, _)) in enumerate(compared.items()):
        color, marker, _ = look_of_contrast(spec, name)
        shown = np.clip(comparison.differences, *ends)
        spots = row + 0.2 + _swarm(shown, (ends[1] - ends[0]) / 80)
        axes.scatter(shown, spots, s=28, color=color, marker=marker, alpha=0.6, linewidth=0, clip_on=False)
        detectable = paired.detectable_difference(comparison.pairs, comparison.sd)
        axes.fill_betweenx([row - 0.32, row - 0.08], -detectable, detectable, color="0.88", zorder=0)
        if -detectable < ends[0] or detectable > ends[1]:
            cut_off = ", cut off where it is beyond the axis"
        _mean_and_interval(axes, row, comparison, color, ends)
    w = words(results)
    numbers = _numbers(axes, w, [comparison for comparison, _ in compared.values()])
    _difference_axis(axes, spec, w, dict(enumerate(compared)), ends, right=max(map(width_of, numbers)))
    return Drawing(
        file_name("paired_differences", cell),
        figure,
        f"Paired differences in {spec.evaluate} {spec.measure.name}{reference_words(spec)}, and their means.",
        f"Paired differences{reference_words(spec)}{w.in_points}, {w.better_sign}: a mark is a "
        f"{results.sampled}; bars and the numbers on the right are the mean and its 95 % interval; gray: the "
        f"minimum detectable difference around 0{cut_off}."
        f"{_of_arrows(compared.values(), ends, seeds_too=True)}",
    )


def reference_words(spec: Spec) -> str:
    """What differences are to, behind a noun."""
    return " of all pairs of arms" if spec.all_pairs else f" to {spec.reference_arm}"


def _numbers(axes: Axes, w: Words, compared: Sequence[paired.Comparison]) -> list[str]:
    """The mean and its interval of each row, to the right of the axis."""
    texts = [w.number(c.mean, "+") + f"\n{w.interval(c.interval, '+')}" * (c.pairs > 1) for c in compared]
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(texts)), texts, fontsize=10)
    right.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    return texts


def overview(results: Results) -> Drawing:
    """A row a comparison, over all cells: mean difference and 95 % interval."""
    spec, compared = results.spec, results.comparisons
    names = [name for _, name in compared]
    lines = 1 + (row_names(names) != names)
    figure, (axes,) = canvas(
        1.3 + 0.2 * lines * len(compared) + 0.04 * len(compared) + 0.34 * len(spec.cells)
    )
    ends = _ends(results, compared, seeds_too=False)
    rows: dict[float, str] = {}
    position, before = 0.0, None
    for (cell, name), (comparison, _) in compared.items():
        if cell != before:
            position, before = position + 1.4 * (before is not None), cell
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.annotate(
                cell,
                (0.01, position),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=9,
                fontweight="bold",
                bbox=ground,
            )
        position += 1
        color, marker, _ = look_of_contrast(spec, name)
        _mean_and_interval(axes, position, comparison, color, ends, marker)
        rows[position] = name
    w = words(results)
    _difference_axis(axes, spec, w, rows, ends, right=0)
    return Drawing(
        "overview",
        figure,
        f"Mean paired differences{reference_words(spec)} in every cell, with 95 % intervals.",
        f"Paired differences{reference_words(spec)} in every cell{w.in_points}, {w.better_sign}: means and "
        "their 95 % intervals, not corrected for their number."
        f"{_of_arrows(compared.values(), ends, seeds_too=False)}",
    )


def _ends(results: Results, places: Iterable[Place], *, seeds_too: bool) -> tuple[float, float]:
    """Where the axis of differences ends: a diverged run, of some 90 points, must not hide the others."""
    shown = [0.0]
    for place in places:
        comparison = results.comparisons[place].comparison
        ok = [a.status == b.status == "ok" for a, b in results.paired_runs(*place)]
        if seeds_too:
            _, of_arm, of_reference = results.pairs(*place)
            shown += [a - b for a, b, kept in zip(of_arm, of_reference, ok, strict=True) if kept]
        if all(ok):
            shown += [comparison.mean, *comparison.interval]
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    reach = max(-low, high) or 1.0
    # Both directions are seen, whichever of them the differences take.
    return min(low, -reach / 4) - 0.08 * reach, max(high, reach / 4) + 0.08 * reach


def _of_arrows(compared: Iterable[Compared], ends: tuple[float, float], *, seeds_too: bool) -> str:
    low, high = ends
    drawn = (v for c, _ in compared for v in (c.mean, *c.interval, *(c.differences if seeds_too else ())))
    beyond = any(v < low or v > high for v in drawn)
    what = "Arrows, and marks on the frame," if seeds_too else "Arrows"
    return f" {what} stand for values beyond the axis: runs diverged." if beyond else ""


def _mean_and_interval(
    axes: Axes,
    row: float,
    comparison: paired.Comparison,
    color: str,
    ends: tuple[float, float],
    marker: str = "|",
) -> None:
    low, high = comparison.interval
    size, edge = (15, 2.5) if marker == "|" else (6, 1)
    axes.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
    axes.plot(comparison.mean, row, marker=marker, color=color, markersize=size, markeredgewidth=edge)
    left, right = (comparison.mean, comparison.mean) if np.isnan(low) else (low, high)
    for end, beyond, arrow in ((ends[0], left < ends[0], "<"), (ends[1], right > ends[1], ">")):
        if beyond:
            axes.plot(end, row, marker=arrow, markersize=7, color=color, clip_on=False)


def _difference_axis(
    axes: Axes, spec: Spec, w: Words, rows: Mapping[float, str], ends: tuple[float, float], *, right: float
) -> None:
    """Differences to the right, comparisons from above; which side is better stands over the axis.

    `right` are the inches of what stands to the right of the axis.
    """
    axes.axvline(0, color="0.4", linewidth=1)
    names = row_names(list(rows.values()))
    axes.set_yticks(list(rows), names)
    left = max(map(width_of, names))
    inches = WIDTH - left - right - 0.3
    difference_ticks(axes.xaxis, inches)
    axes.set_ylim(max(rows) + 0.7, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(*ends)
    of = "the second arm" if spec.all_pairs else spec.reference_arm
    unit = f", in {w.of_difference}" if w.of_difference else ""
    # The label is centered below the axis, and must not reach beyond the nearer edge of the figure.
    axes.set_xlabel(
        wrapped(f"{w.measure.name} minus that of {of} on the same seed{unit}", inches + 2 * min(left, right))
    )
    better_and_worse(axes, w)


def better_and_worse(axes: Axes, w: Words) -> None:
    """Above an axis of differences: which side is better."""
    left, right = ("better", "worse") if w.is_better(-1) else ("worse", "better")
    axes.set_title(f"\N{LEFTWARDS ARROW} {left}", loc="left", fontsize=10, color="0.3")
    axes.set_title(f"{right} \N{RIGHTWARDS ARROW}", loc="right", fontsize=10, color="0.3")


def _swarm(values: paired.Array, width: float) -> paired.Array:
    """Offsets that stack values closer than `width`, so that every seed is seen.

    A stack that would reach the next row is compressed.
    """
    places, seen = np.zeros(len(values)), dict[int, int]()
    for index in np.argsort(values, kind="stable"):
        cell = round(float(values[index] / width))
        places[index] = seen.get(cell, 0)
        seen[cell] = seen.get(cell, 0) + 1
    return places * min(_STEP, _BAND / max(1.0, float(places.max())))

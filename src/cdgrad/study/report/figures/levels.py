"""The figure of a cell's levels: an arm a column, and a line a seed from arm to arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from cdgrad.study.report.figures.drawing import WIDTH, Drawing, canvas, file_name, look, width_of, wrapped
from cdgrad.study.report.words import words
from cdgrad.study.spec import Spec
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results

_BAR = 0.045  # half the width of a mean's bar, as a share of the figure's
_MOST = 30  # seeds whose lines are drawn at full strength
_FARTHER_OUT = " Marks and bars on the frame lie farther out: runs diverged."


def levels(results: Results, cell: str) -> Drawing | None:
    """Every arm's results, those of a seed joined by a line, and the arms' means.

    None where no seed has finished in two arms.
    """
    spec, w = results.spec, words(results)
    arms = [arm for arm in _order(spec) if results.finished[cell, arm]]
    values = _by_seed(results, cell, arms)
    if not (np.isfinite(values).sum(axis=1) > 1).any():
        return None
    low, high = _ends(results, cell, arms)
    inside, means = np.clip(values, low, high), [float(np.mean(results.errors(cell, arm))) for arm in arms]
    figure, (axes,) = canvas(4.2)
    for seed in inside:
        axes.plot(seed, color="0.6", linewidth=0.8, alpha=min(1.0, _MOST / len(values)), zorder=1)
    for column, arm in enumerate(arms):
        color, marker, _ = look(spec, arm)
        reach = min(0.3, _BAR * len(arms))
        mean = np.clip(means[column], low, high)
        axes.plot([column - reach, column + reach], [mean, mean], color=color, linewidth=3, clip_on=False)
        spots = np.full(len(values), column)
        marks = axes.scatter(
            spots, inside[:, column], s=28, color=color, marker=marker, alpha=0.6, linewidth=0
        )
        marks.set(clip_on=False, zorder=3)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_ylim(low, high)
    axes.grid(visible=False, axis="x")
    axes.grid(visible=True, axis="y", color="0.92")
    axes.set_ylabel(wrapped(w.axis(spec.evaluate), 3))
    _names_and_means(axes, arms, [w.number(mean) for mean in means])
    beyond = bool(((values < low) | (values > high)).any())
    return Drawing(
        file_name("levels", cell),
        figure,
        f"{spec.measure.title} of each seed in each arm, joined by lines, and the arms' means.",
        f"{spec.measure.title} on the {spec.evaluate} {w.data}{w.in_unit}, {w.better_value}: a mark is a "
        "run, and a line joins the runs of a seed; bars and the numbers above are means. Where lines cross, "
        "the seeds disagree about the arms." + _FARTHER_OUT * beyond,
    )


def _order(spec: Spec) -> list[str]:
    """The arms, what they are compared with first."""
    first = spec.reference_arm
    return [first, *(arm for arm in spec.arms if arm != first)]


def _by_seed(results: Results, cell: str, arms: Sequence[str]) -> paired.Array:
    """Results (seeds, arms); nan where a run has none."""
    value, finished = results.spec.measure.value, results.finished
    rows = [
        [value(run.error) if (run := finished[cell, arm].get(seed)) else np.nan for arm in arms]
        for seed in results.spec.seeds
        if any(seed in finished[cell, arm] for arm in arms)
    ]
    return np.reshape(rows, (len(rows), len(arms)))


def _ends(results: Results, cell: str, arms: Sequence[str]) -> tuple[float, float]:
    """Where the axis ends: a little beyond all results but those of diverged runs, which hide the others."""
    runs = [run for arm in arms for run in results.finished[cell, arm].values()]
    kept = [run for run in runs if run.status == "ok"] or runs
    shown = [results.spec.measure.value(run.error) for run in kept]
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _names_and_means(axes: Axes, arms: Sequence[str], means: Sequence[str]) -> None:
    """The arms below their columns, slanted where they do not fit, and their means above."""
    slanted = max(map(width_of, arms)) + 0.1 > (WIDTH - 0.8) / len(arms)
    axes.set_xticks(range(len(arms)), arms)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(len(means)), means)
    above.tick_params(axis="x", length=0)
    above.spines["top"].set_visible(False)

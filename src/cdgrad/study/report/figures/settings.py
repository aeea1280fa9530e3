"""The figures of settings: error against lam, and the trials of a search."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
from matplotlib.axes import Axes

from cdgrad.study.plan.search import Search
from cdgrad.study.report.figures.drawing import (
    Drawing,
    canvas,
    error_axis,
    file_name,
    legend,
    look,
    plain_logarithmic,
    wrapped,
)
from cdgrad.study.report.words import words
from cdgrad.study.shown import one_line
from cdgrad.study.spec import Spec
from cdgrad.study.spec.study import apart_from_lam
from cdgrad.study.statistics.results import Results

_FEWEST = 3  # values of lam that make a sweep


def lam_sweep(results: Results, cell: str) -> Drawing | None:
    """Error of the arms that differ in lam alone, against lam; None if there are fewer than 3 of a kind."""
    sweeps = [arms for arms in _families(results, cell) if len(arms) >= _FEWEST]
    if not sweeps:
        return None
    spec = results.spec
    figure, (axes,) = canvas(3.6)
    base = results.errors(cell, spec.baseline)
    if base:
        color, _, dash = look(spec, spec.baseline)
        axes.axhline(float(np.mean(base)), color=color, linestyle=dash, linewidth=1.5, label=spec.baseline)
        axes.axhspan(*results.mean_interval(cell, spec.baseline), color=color, alpha=0.12, linewidth=0)
    for arms in sweeps:
        lams = sorted(arms)
        color, marker, dash = look(spec, arms[lams[0]])
        errors = [results.errors(cell, arms[lam]) for lam in lams]
        means = np.array([np.mean(values) for values in errors])
        ends = np.array([results.mean_interval(cell, arms[lam]) for lam in lams]).T
        title = f"{arms[lams[0]]} to {arms[lams[-1]]}"
        axes.errorbar(
            lams,
            means,
            np.nan_to_num(np.abs(ends - means)),
            color=color,
            marker=marker,
            linestyle=dash,
            capsize=3,
            label=title,
        )
    axes.set_xscale("log")
    lams = [lam for arms in sweeps for lam in arms]
    plain_logarithmic(axes.xaxis, math.log10(max(lams) / min(lams)))
    axes.set_xlabel("lam")
    axes.set_ylabel(wrapped(words(results).axis(spec.evaluate), 2.4))
    legend(figure, axes)
    return Drawing(
        file_name("lam_sweep", cell),
        figure,
        f"Mean {spec.measure.name} of arms that differ in lam alone, against lam, and the baseline's.",
        f"Mean {spec.evaluate} {spec.measure.name} against lam, for arms that differ in nothing else; bars "
        f"and the baseline's band are 95 % intervals of the mean.",
    )


def tuning_scatter(results: Results, cell: str) -> Drawing | None:
    """Validation error of every trial, against each key that was tuned; None if nothing was."""
    spec = results.spec
    searches = {place: s for place, s in results.searches.items() if place.cell == cell and s.runs}
    if spec.tuning is None or not searches:
        return None
    space = {place: spec.tuning.of(place.arm) for place in searches}
    keys = list(dict.fromkeys(key for dimensions in space.values() for key in dimensions))
    figure, panels = canvas(0.7 + 2.3 * len(keys), len(keys))
    for axes, key in zip(panels, keys, strict=True):
        ranges = {place: dimensions[key] for place, dimensions in space.items() if key in dimensions}
        choices: list[str] = []
        if any(dimension.choices for dimension in ranges.values()):
            # One arm's choices may be another's range: the numbers tried in that stand among them.
            tried = {place: [values[key] for values in searches[place].values.values()] for place in ranges}
            shown = (v for place, dimension in ranges.items() for v in dimension.choices or tried[place])
            choices = list(dict.fromkeys(map(str, shown)))
        for place, search in searches.items():
            if key in space[place]:
                _draw_trials(axes, spec, place.arm, search, key, choices)
        if choices:
            # A choice is any text: without parse_math, a dollar would open a formula.
            axes.set_xticks(range(len(choices)), list(map(one_line, choices)), parse_math=False)
        elif (low := min(d.low for d in ranges.values())) > 0 and any(d.log for d in ranges.values()):
            axes.set_xscale("log")
            high = max(d.high for d in ranges.values())
            plain_logarithmic(axes.xaxis, math.log10(high / low))
        axes.set_xlabel(key)
        axes.set_ylabel(wrapped(words(results).axis("validation"), 1.8))
        means = [s.mean(trial) for place, s in searches.items() if key in space[place] for trial in s.runs]
        error_axis(axes.yaxis, min(means), max(means))
        axes.margins(y=0.15)
    first = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    legend(figure, first)
    return Drawing(
        file_name("tuning", cell),
        figure,
        f"Mean validation {spec.measure.name} of every trial of each arm, against each tuned value.",
        f"Trials: mean validation {spec.measure.name} over the tuning seeds, against each tuned value; the "
        "chosen trial of an arm is ringed.",
    )


def _draw_trials(axes: Axes, spec: Spec, arm: str, search: Search, key: str, choices: list[str]) -> None:
    color, marker, _ = look(spec, arm)
    values = {trial: search.values[trial][key] for trial in search.runs}
    x = {trial: choices.index(str(value)) if choices else value for trial, value in values.items()}
    y = {trial: search.mean(trial) for trial in search.runs}
    # The searches of an arm look alike, so that they are one entry of the legend.
    label = "_" if arm in axes.get_legend_handles_labels()[1] else arm
    axes.scatter(list(x.values()), list(y.values()), s=30, color=color, marker=marker, alpha=0.7, label=label)
    if (chosen := search.chosen) is not None:
        axes.scatter(
            [x[chosen]], [y[chosen]], s=160, facecolors="none", edgecolors=color, linewidths=1.8, marker="o"
        )


def _families(results: Results, cell: str) -> list[dict[float, str]]:
    """Finished arms by lam, those together whose settings are otherwise equal."""
    families: dict[str, dict[float, str]] = {}
    for arm in results.spec.arms:
        setting = results.spec.setting(cell, arm, results.values(cell, arm))
        lam, rest = apart_from_lam(setting.metric)
        if math.isnan(lam) or not results.finished[cell, arm]:
            continue
        key = json.dumps(asdict(setting) | {"metric": rest}, sort_keys=True)
        families.setdefault(key, {})[lam] = arm
    return list(families.values())

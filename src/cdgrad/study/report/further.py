"""Further measures, besides the study's result: described, not tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cdgrad.study.records.run import Run
from cdgrad.study.report.document import Table
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
from cdgrad.study.report.tables import mean, row_name
from cdgrad.study.report.words import Words, decimals
from cdgrad.study.shown import one_line
from cdgrad.study.spec import Measure
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results

_PANELS = 6  # of the figure
_ANY = "number"  # not in percent: the decimals of a large one are those of the others
_LAST_LOSS = "loss of the last epoch"


class Difference(NamedTuple):
    """The paired differences of a further measure in a comparison."""

    measure: str
    name: str
    of_arm: list[float]
    differences: list[float]


def further_table(results: Results, cell: str) -> Table | None:
    """A measure and comparison a row; None where the runs measured nothing else."""
    rows: list[Sequence[str]] = []
    before, one_reference = "", not results.spec.all_pairs
    for d in _differences(results, cell):
        counts = all(number.is_integer() for number in (*d.of_arm, *d.differences))  # such as of parameters
        digits = 0 if counts else decimals(paired.standard_deviation(d.differences))
        w = Words(Measure(_ANY, "min"), digits)
        shown, before = ("" if d.measure == before else one_line(d.measure)), d.measure
        interval = w.interval(paired.mean_interval(d.differences), "+")
        of_arm = [w.number(mean(d.of_arm))] * one_reference
        difference = w.number(mean(d.differences), "+")
        rows.append((shown, d.name, *of_arm, difference, interval, str(len(d.differences))))
    if not rows:
        return None
    return Table(
        "Further measures, not tested",
        ("measure", row_name(results), *["mean"] * one_reference, "difference", "95 % t", "pairs"),
        rows,
        "mean: of the arm; "
        * one_reference
        + "difference: paired, with its uncorrected interval; pairs: seeds on which both arms have a finite "
        "number, which diverged runs may lack. These numbers are descriptive: no hypothesis about them is "
        "tested",
        align="llrrr" + "r" * one_reference,
        grouped=True,
    )


def further_figure(results: Results, cell: str) -> Drawing | None:
    """A panel a measure: mean differences and their intervals; None where the runs measured nothing else."""
    differences = _differences(results, cell)
    measures = list(dict.fromkeys(d.measure for d in differences))[:_PANELS]
    if not measures:
        return None
    spec, per_panel = results.spec, len(differences) // len(dict.fromkeys(d.measure for d in differences))
    names = [d.name for d in differences]
    lines, inches = 1 + (row_names(names) != names), WIDTH - max(map(width_of, row_names(names))) - 0.3
    figure, panels = canvas((0.75 + (0.08 + 0.2 * lines) * per_panel) * len(measures) + 0.3, len(measures))
    for axes, measure in zip(panels, measures, strict=True):
        rows = [d for d in differences if d.measure == measure]
        axes.axvline(0, color="0.4", linewidth=1)
        for row, d in enumerate(rows):
            color, marker, _ = look_of_contrast(spec, d.name)
            axes.plot(paired.mean_interval(d.differences), [row, row], color=color, linewidth=2.5)
            axes.plot(mean(d.differences), row, marker=marker, color=color, markersize=6)
        axes.set_yticks(range(len(rows)), row_names([d.name for d in rows]))
        difference_ticks(axes.xaxis, inches)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(one_line(measure), loc="left", fontsize=10, parse_math=False)
    to = "" if spec.all_pairs else f" to {spec.reference_arm}"
    panels[-1].set_xlabel(wrapped(f"paired difference{to}", inches))
    left_out = len({d.measure for d in differences}) - len(measures)
    more = f" The first {_PANELS} are shown." if left_out else ""
    return Drawing(
        file_name("further_measures", cell),
        figure,
        f"Mean paired differences{to} in further measures, with 95 % intervals.",
        f"Further measures, not tested: mean paired differences{to} and their uncorrected 95 % t "
        f"intervals.{more}",
    )


def _differences(results: Results, cell: str) -> list[Difference]:
    """For each measure and comparison the pairs in which both runs have a finite number."""
    keys = sorted({key for run in results.runs_in(cell) for key in run.measures})
    measured: list[Difference] = []
    for key in [*keys, *([] if "loss" in keys else [_LAST_LOSS])]:
        for name in results.in_cell(cell):
            both = [(_value(a, key), _value(b, key)) for a, b in results.paired_runs(cell, name)]
            both = [pair for pair in both if all(map(math.isfinite, pair))]
            if both:
                measured.append(Difference(key, name, [a for a, _ in both], [a - b for a, b in both]))
    return measured


def _value(run: Run, key: str) -> float:
    """A run's number; nan where it has none."""
    values = {_LAST_LOSS: run.epochs[-1].get("loss")} if run.epochs else {}
    value = (values | run.measures).get(key)
    return float(value) if isinstance(value, int | float) else math.nan

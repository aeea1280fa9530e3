"""The figures of what the runs measured epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cdgrad.study.records.run import Run
from cdgrad.study.report.figures.drawing import (
    Drawing,
    canvas,
    error_axis,
    file_name,
    legend,
    look,
    look_of_contrast,
    wrapped,
)
from cdgrad.study.report.words import words
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results

_HEIGHT = 2.4  # inches of the label beside an axis
_BANDS_AT_MOST = 4  # arms: more bands than that hide each other
_GRADIENT = {
    "norm_ratio": "|Pg| / |g|",
    "cosine": "cos(g, Pg)",
    "weight_norm": "weight norm",
}


def learning_curves(results: Results, cell: str) -> Drawing | None:
    """Error over the epochs: mean over the seeds. None if not measured.

    Without bands: those of unpaired means overlap where the pairs differ clearly; see `difference_curves`.
    """
    spec, key = results.spec, curve_key(results, cell)
    if key is None:
        return None
    seconds = _seconds_per_epoch(results, cell)
    figure, panels = canvas(3.4 * (1 + bool(seconds)) + 0.4, 1 + bool(seconds))
    what = key.replace("_", " ")
    for axes, scales, title in zip(panels, (None, seconds), ("epoch", "seconds"), strict=False):
        _draw(axes, results, cell, key, scales)
        error_axis(axes.yaxis, *_range(axes))
        axes.set_xlabel(title)
        label = words(results).axis(what.removesuffix(spec.measure.key.replace("_", " ")))
        axes.set_ylabel(wrapped(label, _HEIGHT))
    legend(figure, panels[0])
    by_time = (
        " Bottom: over time, with the seconds of a run divided evenly among its epochs." if seconds else ""
    )
    return Drawing(
        file_name("learning_curves", cell),
        figure,
        f"Mean {what} of each arm over the epochs" + (", and over the seconds." if seconds else "."),
        f"Mean {what} over the seeds.{by_time}",
    )


def _seconds_per_epoch(results: Results, cell: str) -> dict[str, float]:
    """The mean seconds of an epoch of each arm; empty where an arm has none."""
    arms = [arm for arm in results.spec.arms if results.finished[cell, arm]]
    means = {
        arm: float(np.mean([r.seconds / max(1, len(r.epochs)) for r in results.finished[cell, arm].values()]))
        for arm in arms
    }
    return means if all(means.values()) else {}


def difference_curves(results: Results, cell: str) -> Drawing | None:
    """Paired difference of the result to the reference over the epochs, with the 95 % interval of its mean.

    None where it was not measured, or no comparison has two seeds.
    """
    spec, w, key = results.spec, words(results), curve_key(results, cell)
    drawn = _paired_curves(results, cell, key) if key else {}
    if key is None or not drawn:
        return None
    figure, (axes,) = canvas(3.8)
    axes.axhline(0, color="0.4", linewidth=1)
    for arm, (epochs, differences) in drawn.items():
        color, _, dash = look_of_contrast(spec, arm)
        _plot(axes, epochs, differences.mean(axis=0), dash, color, arm)
        if len(drawn) <= _BANDS_AT_MOST:
            ends = np.array([paired.mean_interval(column) for column in differences.T])
            axes.fill_between(epochs, ends[:, 0], ends[:, 1], color=color, alpha=0.18, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    what = key.replace("_", " ")
    to = "" if spec.all_pairs else f" to {spec.reference_arm}"
    unit = f", {w.of_difference}" if w.of_difference else ""
    axes.set_ylabel(wrapped(f"difference{to}{unit}", _HEIGHT))
    better, worse = ("below", "above") if w.is_better(-1) else ("above", "below")
    axes.set_title(f"{better} 0: better, {worse}: worse", loc="right", fontsize=10, color="0.3")
    legend(figure, axes)
    looks = ", valid for one look at a fixed number of seeds" * bool(spec.until)
    tuning = ", without the noise of tuning" * (spec.replicates > 1)
    bands = f" The band is the 95 % t interval of the mean over the seeds{looks}{tuning}."
    bands *= len(drawn) <= _BANDS_AT_MOST
    return Drawing(
        file_name("difference_curves", cell),
        figure,
        f"Mean paired difference in {what}{to} over the epochs.",
        f"Paired difference in {what}{to}{w.in_points}, {w.better_sign}: mean over the seeds.{bands}",
    )


def _paired_curves(results: Results, cell: str, key: str) -> dict[str, tuple[paired.Array, paired.Array]]:
    """For each comparison with two seeds or more the epochs (n,) and its differences (seeds, n)."""
    drawn: dict[str, tuple[paired.Array, paired.Array]] = {}
    for name in results.in_cell(cell):
        runs = results.paired_runs(cell, name)
        of_arm, of_reference = (_curves([pair[side] for pair in runs], key) for side in (0, 1))
        if len(runs) > 1 and of_arm and of_reference and len(of_arm[1]) == len(of_reference[1]) == len(runs):
            epochs, arm_index, reference_index = np.intersect1d(
                of_arm[0], of_reference[0], return_indices=True
            )
            drawn[name] = epochs, of_arm[1][:, arm_index] - of_reference[1][:, reference_index]
    return drawn


def curve_key(results: Results, cell: str) -> str | None:
    """The study's measure in the epochs: on the validation data, or else as such, or on the training data."""
    measured, measure = _measured(results.runs_in(cell)), results.spec.measure
    keys = (f"validation_{measure.key}", measure.key, measure.name, f"train_{measure.key}")
    return next((key for key in keys if key in measured), None)


def gradient_curves(results: Results, cell: str) -> Drawing | None:
    """What each arm does to the gradient, and the norm of its weights; None if not measured."""
    measured = _measured(results.runs_in(cell))
    keys = [key for key in _GRADIENT if key in measured]
    if not keys:
        return None
    figure, panels = canvas(0.7 + 1.7 * len(keys), len(keys))
    for axes, key in zip(panels, keys, strict=True):
        _draw(axes, results, cell, key)
        axes.set_ylabel(_GRADIENT[key])
    panels[-1].set_xlabel("epoch")
    legend(figure, panels[0])
    return Drawing(
        file_name("gradient_curves", cell),
        figure,
        "Over the epochs, means of each arm: " + ", ".join(_GRADIENT[key] for key in keys) + ".",
        "Means over the seeds. |Pg| / |g| and cos(g, Pg): how much the operator shortens the gradient, "
        "and how far it rotates it (1: not at all), in the last step of an epoch. Under batch norm, learning "
        "rate and weight norm set the step: arms in which they differ differ in more than direction.",
    )


def _measured(runs: Iterable[Run]) -> set[str]:
    """What has a finite number in some epoch: no axis ends at nan."""
    return {k for run in runs for epoch in run.epochs for k, value in epoch.items() if math.isfinite(value)}


def _draw(
    axes: Axes, results: Results, cell: str, key: str, seconds: Mapping[str, float] | None = None
) -> None:
    """The mean of each arm over the epochs, or over the time where `seconds` has that of an epoch."""
    for arm in results.spec.arms:
        if not (measured := _curves(list(results.finished[cell, arm].values()), key)):
            continue
        epochs, curves = measured
        color, _, dash = look(results.spec, arm)
        x = epochs * seconds[arm] if seconds else epochs
        _plot(axes, x, curves.mean(axis=0), dash, color, arm)
    if not seconds:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot(axes: Axes, x: paired.Array, y: paired.Array, dash: str, color: str, label: str) -> None:
    """A curve; a single epoch, which has no line, gets a mark."""
    marker = "o" if len(x) == 1 else "none"
    axes.plot(x, y, dash, color=color, linewidth=1.8, label=label, marker=marker, markersize=4)


def _curves(runs: Sequence[Run], key: str) -> tuple[paired.Array, paired.Array] | None:
    """Epochs (n,) at which every run has measured `key`, and its values (runs, n).

    A run that ended early, because it diverged, stays where it ended. None where there is no such epoch.
    """
    measured = [
        curve for run in runs if (curve := {k: e[key] for k, e in enumerate(run.epochs, 1) if key in e})
    ]
    every = {k for curve in measured for k in curve}
    epochs = sorted(k for k in every if all(k in curve or k > max(curve) for curve in measured))
    if not epochs:
        return None
    curves = np.array([[curve.get(k, curve[max(curve)]) for k in epochs] for curve in measured])
    return np.array(epochs, dtype=np.float64), curves


def _range(axes: Axes) -> tuple[float, float]:
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    return float(np.nanmin(values)), float(np.nanmax(values))

"""The figures of what the runs measured epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cdgrad.study.records.run import Run
from cdgrad.study.report.figures.drawing import Drawing, canvas, error_axis, legend, look, name
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results

_BANDS_AT_MOST = 4  # arms: more bands than that hide each other
_ERRORS = ("validation_error", "error", "train_error")  # the first that was measured is drawn
_GRADIENT = {
    "norm_ratio": "|Pg| / |g|",
    "cosine": "cos(g, Pg)",
    "weight_norm": "weight norm",
}


def learning_curves(results: Results, cell: str) -> Drawing | None:
    """Error over the epochs: mean over the seeds. None if not measured.

    Without bands: those of unpaired means overlap where the pairs differ clearly; see `difference_curves`.
    """
    runs = {arm: list(results.finished[cell, arm].values()) for arm in results.spec.arms}
    key = _error_key(run for of_arm in runs.values() for run in of_arm)
    if key is None:
        return None
    figure, (axes,) = canvas(3.8)
    _draw(axes, results, cell, key)
    lowest, highest = _range(axes)
    error_axis(axes.yaxis, lowest, highest)
    axes.set_xlabel("epoch")
    what = key.replace("_", " ")
    axes.set_ylabel(f"{what}, %")
    legend(figure, axes)
    return Drawing(
        name("learning_curves", cell),
        figure,
        f"Mean {what} of each arm over the epochs.",
        f"{what[0].upper()}{what[1:]}: mean over the seeds.",
    )


def difference_curves(results: Results, cell: str) -> Drawing | None:
    """Paired difference of the error to the baseline over the epochs, with the 95 % interval of its mean.

    None where it was not measured, or no arm shares two seeds with the baseline.
    """
    base = results.finished[cell, results.spec.baseline]
    drawn: dict[str, tuple[paired.Array, paired.Array]] = {}
    key = _error_key(base.values())
    for arm in results.in_cell(cell) if key else ():
        seeds, _, _ = results.pairs(cell, arm)
        curves = _curves([results.finished[cell, arm][seed] for seed in seeds], key or "")
        against = _curves([base[seed] for seed in seeds], key or "")
        if len(seeds) > 1 and curves and against and len(curves[1]) == len(against[1]) == len(seeds):
            epochs, mine, theirs = np.intersect1d(curves[0], against[0], return_indices=True)
            drawn[arm] = epochs, curves[1][:, mine] - against[1][:, theirs]
    if key is None or not drawn:
        return None
    figure, (axes,) = canvas(3.8)
    axes.axhline(0, color="0.4", linewidth=1)
    for arm, (epochs, differences) in drawn.items():
        color, _, dash = look(results.spec, arm)
        mark = {"marker": "o", "markersize": 4} if len(epochs) == 1 else {}
        axes.plot(epochs, differences.mean(axis=0), dash, color=color, linewidth=1.8, label=arm, **mark)
        if len(drawn) <= _BANDS_AT_MOST:
            ends = np.array([paired.mean_interval(column) for column in differences.T])
            axes.fill_between(epochs, ends[:, 0], ends[:, 1], color=color, alpha=0.18, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    what = key.replace("_", " ")
    axes.set_ylabel(f"{what} minus that of {results.spec.baseline}")
    legend(figure, axes)
    bands = " The band is the 95 % interval of the mean." if len(drawn) <= _BANDS_AT_MOST else ""
    return Drawing(
        name("difference_curves", cell),
        figure,
        f"Mean paired difference in {what} to {results.spec.baseline} over the epochs.",
        f"Paired difference in {what} to {results.spec.baseline}, in points: mean over the seeds.{bands}",
    )


def _error_key(runs: Iterable[Run]) -> str | None:
    """The error that the epochs measured: the first of `_ERRORS` that is there."""
    measured = _measured(runs)
    return next((key for key in _ERRORS if key in measured), None)


def gradient_curves(results: Results, cell: str) -> Drawing | None:
    """What each arm does to the gradient, and the norm of its weights; None if not measured."""
    measured = _measured(run for arm in results.spec.arms for run in results.finished[cell, arm].values())
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
        name("gradient_curves", cell),
        figure,
        "Over the epochs, means of each arm: " + ", ".join(_GRADIENT[key] for key in keys) + ".",
        "Means over the seeds. |Pg| / |g| and cos(g, Pg): how much shorter the operator makes the gradient, "
        "and how far it turns it (1: not at all), in the last step of an epoch. Under batch norm, learning "
        "rate and weight norm set the step: arms in which they differ differ in more than direction.",
    )


def _measured(runs: Iterable[Run]) -> set[str]:
    """What has a finite number in some epoch: no axis ends at nan."""
    return {k for run in runs for epoch in run.epochs for k, value in epoch.items() if math.isfinite(value)}


def _draw(axes: Any, results: Results, cell: str, key: str) -> None:
    """The mean of each arm over the epochs."""
    for arm in results.spec.arms:
        found = _curves(list(results.finished[cell, arm].values()), key)
        if not found:
            continue
        epochs, curves = found
        color, _, dash = look(results.spec, arm)
        # A mark where a single epoch has no line.
        mark = {"marker": "o", "markersize": 4} if len(epochs) == 1 else {}
        axes.plot(epochs, curves.mean(axis=0), dash, color=color, linewidth=1.8, label=arm, **mark)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curves(runs: Sequence[Run], key: str) -> tuple[paired.Array, paired.Array] | None:
    """Epochs (n,) at which `key` was measured, and its values (runs, n).

    A run that ended early, because it diverged, stays where it ended.
    """
    measured = [
        found for run in runs if (found := {k: e[key] for k, e in enumerate(run.epochs, 1) if key in e})
    ]
    epochs = sorted({k for found in measured for k in found})
    if not epochs:
        return None
    curves = np.array([[found.get(k, found[max(found)]) for k in epochs] for found in measured])
    return np.array(epochs, dtype=np.float64), curves


def _range(axes: Any) -> tuple[float, float]:
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    return float(np.nanmin(values)), float(np.nanmax(values))

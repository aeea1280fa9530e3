"""The figures of a report, drawn without matplotlib's global state.

Colors are Okabe and Ito's, which color-blind readers tell apart; arms differ in marker and dash, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from cdgrad.study import stats
from cdgrad.study.records import Run
from cdgrad.study.spec import Spec

_COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_BANDS_AT_MOST = 4  # arms: more bands than that hide each other


@dataclass(frozen=True)
class Drawing:
    """A drawn figure with its file's base name and its words."""

    name: str
    figure: Any
    alt: str
    caption: str

    def png(self) -> bytes:
        """The figure at 160 dots an inch."""
        return self._saved("png", dpi=160)

    def svg(self) -> bytes:
        """The figure as a vector image, the same bytes every time."""
        # The salt and the missing date make it reproducible.
        with matplotlib.rc_context(  # pyright: ignore[reportUnknownMemberType]
            {"svg.hashsalt": self.name}
        ):
            return self._saved("svg", metadata={"Date": None})

    def _saved(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


def paired_differences(spec: Spec, comparisons: Mapping[str, tuple[stats.Comparison, float]]) -> Drawing:
    """A row an arm: every seed's difference to the baseline, their mean and its 95 % interval."""
    figure, axes = _canvas(height=1.4 + 0.7 * len(comparisons))
    for row, (arm, (comparison, _)) in enumerate(comparisons.items()):
        color, marker = _look(spec, arm)[:2]
        spots = _swarm(comparison.differences)
        axes.scatter(
            comparison.differences,
            row + 0.2 + spots,
            s=28,
            color=color,
            marker=marker,
            alpha=0.6,
            linewidth=0,
        )
        low, high = comparison.interval
        axes.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(comparison.mean, row, marker="|", markersize=15, markeredgewidth=2.5, color=color)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(comparisons)), list(comparisons))
    axes.set_ylim(len(comparisons) - 0.3, -0.5)
    axes.tick_params(axis="y", length=0)
    shown = np.concatenate([[*c.differences, *c.interval] for c, _ in comparisons.values()])
    reach = 1.08 * np.nanmax(np.abs(shown)) or 1.0
    axes.set_xlim(-reach, reach)
    axes.set_xlabel(f"error minus that of {spec.baseline} on the same seed, in points")
    axes.set_title("\N{LEFTWARDS ARROW} fewer errors", loc="left", fontsize=10, color="0.3")
    axes.set_title("more errors \N{RIGHTWARDS ARROW}", loc="right", fontsize=10, color="0.3")
    return Drawing(
        "paired_differences",
        figure,
        f"Paired differences in {spec.evaluate} error to {spec.baseline}, seed by seed, with their means.",
        f"Paired differences to {spec.baseline}: a mark is a seed; bars are 95 % intervals of the mean.",
    )


def learning_curves(spec: Spec, finished: Mapping[str, Mapping[int, Run]]) -> Drawing:
    """Validation error over the epochs: mean over the seeds, and its 95 % interval as a band."""
    figure, axes = _canvas(height=3.6)
    # The user's own training code may report no epochs.
    reported = {arm: [run for run in runs.values() if run.epochs] for arm, runs in finished.items()}
    shown = [arm for arm, runs in reported.items() if runs]
    lowest = 100.0
    for arm, runs in reported.items():
        if not runs:
            continue
        length = max(len(run.epochs) for run in runs)
        curves = np.full((len(runs), length), np.nan)
        for row, run in zip(curves, runs, strict=True):
            row[: len(run.epochs)] = [epoch.get("validation_error", np.nan) for epoch in run.epochs]
            # A diverged run stays where it ended.
            row[len(run.epochs) :] = row[len(run.epochs) - 1]
        color, _, dash = _look(spec, arm)
        epochs = np.arange(1, length + 1)
        axes.plot(epochs, curves.mean(axis=0), dash, color=color, linewidth=1.8, label=arm)
        lowest = min(lowest, curves.mean(axis=0).min())
        if len(shown) <= _BANDS_AT_MOST:
            bands = np.array([stats.mean_interval(column) for column in curves.T])
            axes.fill_between(epochs, bands[:, 0], bands[:, 1], color=color, alpha=0.18, linewidth=0)
    axes.set_yscale("log")
    # On a logarithmic axis an interval that reaches 0 would take up all the height.
    axes.set_ylim(bottom=max(lowest / 2, 0.05))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation error, %")
    if len(shown) <= _BANDS_AT_MOST:
        axes.legend(frameon=False)
    else:
        figure.legend(loc="outside right upper", frameon=False)
    return Drawing(
        "learning_curves",
        figure,
        "Mean validation error of each arm over the epochs.",
        "Validation error: mean over the seeds"
        + (", with the 95 % interval of the mean as a band." if len(shown) <= _BANDS_AT_MOST else "."),
    )


def _canvas(height: float) -> tuple[Any, Any]:
    figure: Any = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    return figure, axes


def _look(spec: Spec, arm: str) -> tuple[str, str, str]:
    """Color, marker and dash; the baseline is black."""
    order = [spec.baseline, *(name for name in spec.arms if name != spec.baseline)]
    index = order.index(arm)
    color = index % len(_COLORS)
    return _COLORS[color], _MARKERS[color], _DASHES[(color + index // len(_COLORS)) % len(_DASHES)]


def _swarm(values: stats.Array) -> stats.Array:
    """Offsets that stack equal values, so that every seed is seen."""
    width = np.ptp(values) / 40 or 1.0
    heights, seen = np.zeros(len(values)), dict[int, int]()
    for index in np.argsort(values, kind="stable"):
        cell = round(float(values[index] / width))
        heights[index] = 0.09 * seen.get(cell, 0)
        seen[cell] = seen.get(cell, 0) + 1
    return heights

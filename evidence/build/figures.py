"""The page's figures. Colors are Okabe and Ito's; series differ in marker or dash, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cdgrad.study.report.figures.drawing import Drawing
from cdgrad.study.statistics import paired as stats
from evidence.build import mechanism
from evidence.build.loading import Row
from evidence.build.mechanism import Array, Curve

_DIFFERENCE = "better  \u2190  error minus the baseline's on the same seed, points  \u2192  worse"
BLACK, ORANGE, BLUE, GREEN, RED = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"


def forests(
    name: str, table: Sequence[Row], arms: Mapping[str, str], labels: Mapping[str, str]
) -> list[Drawing]:
    """A panel an arm, a row a cell: every seed's difference, the mean and its 95 % interval.

    Returns:
        The figure with its panels side by side, and ``NAME-narrow``: one above another, for a phone.
    """
    cells = list(dict.fromkeys(row.cell for row in table))
    wide, beside = _panels(len(arms), height=1.1 + 0.3 * len(cells), sharey=True)
    narrow = _figure(height=1.4 + (0.5 + 0.25 * len(cells)) * len(arms), width=4)
    above = [_plain_axes(axes) for axes in narrow.subplots(len(arms), 1)]
    for panels in (beside, above):
        for axes, (arm, title) in zip(panels, arms.items(), strict=True):
            shown = {row.cell: row for row in table if row.arm == arm}
            for y, cell in enumerate(cells):
                if cell in shown:
                    _row(axes, y, shown[cell].comparison, _color(shown[cell]))
            axes.set_title(title, fontsize=10)
            _finish(axes, len(cells), [labels.get(cell, cell) for cell in cells])
    for figure, columns, size in ((wide, 4, 9), (narrow, 2, 7.5)):
        figure.supxlabel(_DIFFERENCE, fontsize=size)
        _legend(figure, columns, size)
    return [Drawing(name, wide, "", ""), Drawing(f"{name}-narrow", narrow, "", "")]


def one_forest(name: str, table: Sequence[Row], labels: Mapping[str, str]) -> Drawing:
    """A row an arm, in one panel."""
    figure, (axes,) = _panels(1, height=1.1 + 0.32 * len(table), sharey=True)
    for y, row in enumerate(table):
        _row(axes, y, row.comparison, _color(row))
    _finish(axes, len(table), [labels.get(row.arm, row.arm) for row in table])
    axes.set_xlabel(_DIFFERENCE, fontsize=9)
    _legend(figure)
    return Drawing(name, figure, "", "")


def rates(name: str, errors: Mapping[float, Sequence[float]], tuned: float) -> Drawing:
    """Mean test error over the learning rates; the one that was chosen by tuning is marked."""
    figure, (axes,) = _panels(1, height=2.8, sharey=True)
    rate = np.array(list(errors))
    ends = np.array([stats.mean_interval(values) for values in errors.values()])
    mean = np.array([np.mean(values) for values in errors.values()])
    axes.errorbar(rate, mean, [mean - ends[:, 0], ends[:, 1] - mean], color=BLACK, marker="o", markersize=4)
    axes.plot([tuned], [float(np.mean(errors[tuned]))], "s", color=ORANGE, markersize=8)
    axes.annotate("tuned", (tuned, float(ends[:, 0].min()) - 0.1), ha="center", va="top", fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("learning rate", fontsize=9)
    axes.set_ylabel("test error, %", fontsize=9)
    return Drawing(name, figure, "", "")


def spectra(name: str, curves: Mapping[str, Mapping[str, Curve]]) -> Drawing:
    """A panel a cell: signal over noise by mode along the channel, relative to its mean over k > 0."""
    figure, panels = _panels(len(curves), height=3.2, sharey=True)
    looks = [(BLACK, "o", "-"), (ORANGE, "s", "--"), (BLUE, "^", "-.")]
    for axes, (title, lines) in zip(panels, curves.items(), strict=True):
        axes.axhline(1, color="0.8", linewidth=1)
        for (label, curve), (color, marker, dash) in zip(lines.items(), looks, strict=False):
            low, high = curve.interval
            axes.fill_between(curve.position[1:], low[1:], high[1:], color=color, alpha=0.15, linewidth=0)
            axes.plot(
                curve.position[1:], curve.ratio[1:], dash, color=color, marker=marker, label=label, ms=4
            )
        mean = next(iter(lines.values()))  # the mean mode is the same in every order
        ends = [[mean.ratio[0] - mean.interval[0, 0]], [mean.interval[1, 0] - mean.ratio[0]]]
        axes.errorbar([-0.06], [mean.ratio[0]], ends, color=GREEN, marker="D", markersize=4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("mode k / n", fontsize=9)
        axes.set_ylim(0, 2)
        axes.set_xticks([-0.06, 0.25, 0.5, 0.75, 1], ["mean", "0.25", "0.5", "0.75", "1"])
    panels[0].set_ylabel("signal over noise, relative", fontsize=9)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return Drawing(name, figure, "", "")


def training(
    name: str, layers: dict[str, Array], cells: Mapping[str, str], arms: Mapping[str, str]
) -> Drawing:
    """Along training: the weights' roughness along the channel, and n times the mean's share."""
    figure = _figure(height=4.8)
    panels = figure.subplots(2, len(cells), sharey="row", squeeze=False)
    looks = [(BLACK, "o", "-"), (ORANGE, "s", "--"), (BLUE, "^", "-.")]
    layers = layers | {"share": layers["weight_mean_share"] * layers["channels"]}
    for column, (cell, title) in enumerate(cells.items()):
        known = np.unique(layers["arm"][layers["cell"] == cell])
        for (arm, label), (color, marker, dash) in zip(arms.items(), looks, strict=True):
            if arm not in known:
                continue
            for axes, key in zip(panels[:, column], ("weight_roughness", "share"), strict=True):
                epochs, mean, (low, high) = mechanism.along_training(
                    layers, key, cell=cell, arm=arm, order="index"
                )
                axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(epochs, mean, dash, color=color, marker=marker, markersize=4, label=label)
        panels[0, column].set_title(title, fontsize=10)
        panels[1, column].set_xlabel("epoch", fontsize=9)
        panels[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0, column].tick_params(labelbottom=False)
        for axes in panels[:, column]:
            axes.axhline(1, color="0.8", linewidth=1, zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("roughness (white noise: 1)", fontsize=9)
    panels[1, 0].set_ylabel("mean mode's share, times n", fontsize=9)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return Drawing(name, figure, "", "")


def widths(
    name: str, curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], at: Sequence[float]
) -> Drawing:
    """A panel a cell: error over the share of the channels that are left, on a logarithmic axis."""
    figure = _figure(height=1.2 + 2.2 * ((len(curves) + 1) // 2))
    panels = figure.subplots((len(curves) + 1) // 2, 2, squeeze=False).flatten()
    looks = [(BLACK, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", ":"), (BLUE, "v", "-."), ("0.5", "D", "")]
    for axes, (title, lines) in zip(panels, curves.items(), strict=False):
        for (label, errors), (color, marker, dash) in zip(lines.items(), looks, strict=True):
            shown = [(width, values) for width, values in zip(at, errors, strict=True) if values]
            for width, values in shown:
                axes.plot([width] * len(values), values, marker, color=color, markersize=2.5, alpha=0.5)
            mean = [float(np.mean(values)) for _, values in shown]
            axes.plot([w for w, _ in shown], mean, dash, color=color, marker=marker, ms=5, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 40, 60, 80]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xticks([0.25, 0.5, 0.75, 1], ["1/4", "1/2", "3/4", "full"])
        axes.invert_xaxis()
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("channels left, nothing trained after", fontsize=9)
    figure.supylabel("test error, %", fontsize=9)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return Drawing(name, figure, "", "")


def _plain(value: float, _: int | None) -> str:
    return f"{value:g}"


def _legend(figure: Figure, columns: int = 4, fontsize: float = 9) -> None:
    handles = [
        Line2D([], [], color="0.6", marker="o", markersize=3, linestyle=""),
        Line2D([], [], color=BLACK, linewidth=2.5),
        Line2D([], [], color=BLUE, linewidth=2.5),
        Line2D([], [], color=RED, linewidth=2.5),
    ]
    labels = ["one seed", "mean and 95 % interval: no difference shown", "better", "worse"]
    place = "outside upper center"
    figure.legend(
        handles, labels, loc=place, ncols=columns, columnspacing=1, frameon=False, fontsize=fontsize
    )


def _color(row: Row) -> str:
    """Of a mean and its interval: fewer errors than the baseline's are shown, more are, or neither."""
    return BLUE if row.better else RED if row.worse else BLACK


def _row(axes: Any, y: int, comparison: stats.Comparison, color: str) -> None:
    random = np.random.default_rng(y)  # a little height, so that equal seeds are seen
    heights = y + random.uniform(-0.28, 0.28, size=comparison.pairs)
    axes.scatter(comparison.differences, heights, s=6, color="0.6", alpha=0.5, linewidth=0)
    axes.plot(comparison.interval, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
    axes.plot(comparison.mean, y, marker="|", markersize=11, markeredgewidth=2, color=color)


def _finish(axes: Any, rows: int, labels: Sequence[str]) -> None:
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(rows), labels, fontsize=9)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _panels(count: int, height: float, sharey: bool) -> tuple[Any, Sequence[Any]]:
    figure = _figure(height)
    panels = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    return figure, [_plain_axes(axes) for axes in panels]


def _plain_axes(axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def _figure(height: float, width: float = 7.2) -> Any:
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

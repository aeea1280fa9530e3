"""The page's figures. Colors are Okabe and Ito's; series differ in marker or dash, too.

Each is drawn twice: as it is, and as ``NAME-narrow`` for a phone, where panels stand one above another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_LOOKS = ((BLACK, "o", "-"), (ORANGE, "s", "--"), (BLUE, "^", "-."))


def forests(
    name: str, table: Sequence[Row], arms: Mapping[str, str], labels: Mapping[str, str]
) -> list[Drawing]:
    """A panel an arm, a row a cell: every seed's difference, the mean and its 95 % interval."""
    cells = list(dict.fromkeys(row.cell for row in table))

    def draw(figure: Any, narrow: bool) -> None:
        panels = figure.subplots(len(arms), 1) if narrow else figure.subplots(1, len(arms), sharey=True)
        for axes, (arm, title) in zip(panels, arms.items(), strict=True):
            shown = {row.cell: row for row in table if row.arm == arm}
            for y, cell in enumerate(cells):
                if cell in shown:
                    _row(axes, y, shown[cell].comparison, _color(shown[cell]))
            axes.set_title(title, fontsize=10)
            _finish(_plain_axes(axes), len(cells), [labels.get(cell, cell) for cell in cells])
        size = 7.5 if narrow else 9
        figure.supxlabel(_DIFFERENCE, fontsize=size)
        _legend(figure, 2 if narrow else 4, size)

    return _twice(name, draw, 1.1 + 0.3 * len(cells), 1.4 + (0.5 + 0.25 * len(cells)) * len(arms))


def one_forest(name: str, table: Sequence[Row], labels: Mapping[str, str]) -> list[Drawing]:
    """A row an arm, in one panel; for a phone each arm's name stands above its row."""
    names = [labels.get(row.arm, row.arm) for row in table]

    def draw(figure: Any, narrow: bool) -> None:
        axes = _plain_axes(figure.subplots())
        for y, row in enumerate(table):
            _row(axes, y, row.comparison, _color(row))
        _finish(axes, len(table), names)
        size = 7.5 if narrow else 9
        if narrow:
            axes.set_yticks([])
            axes.set_ylim(len(table) - 0.4, -0.9)
            place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
            for y, text in enumerate(names):
                axes.text(0.01, y - 0.52, text, **place)
        axes.set_xlabel(_DIFFERENCE, fontsize=size)
        _legend(figure, 2 if narrow else 4, size)

    return _twice(name, draw, 1.1 + 0.32 * len(table), 1.4 + 0.48 * len(table))


def rates(name: str, errors: Mapping[float, Sequence[float]], tuned: float) -> list[Drawing]:
    """Mean test error over the learning rates; the one that was chosen by tuning is marked."""
    rate = np.array(list(errors))
    ends = np.array([stats.mean_interval(values) for values in errors.values()])
    mean = np.array([np.mean(values) for values in errors.values()])

    def draw(figure: Any, _: bool) -> None:
        axes = _plain_axes(figure.subplots())
        axes.errorbar(
            rate, mean, [mean - ends[:, 0], ends[:, 1] - mean], color=BLACK, marker="o", markersize=4
        )
        axes.plot([tuned], [float(np.mean(errors[tuned]))], "s", color=ORANGE, markersize=8)
        axes.annotate("tuned", (tuned, float(ends[:, 0].min()) - 0.1), ha="center", va="top", fontsize=9)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("learning rate", fontsize=9)
        axes.set_ylabel("test error, %", fontsize=9)

    return _twice(name, draw, 2.8, 2.6)


def spectra(name: str, curves: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """A panel a cell: signal over noise by mode along the channel, relative to its mean over k > 0."""

    def draw(figure: Any, narrow: bool) -> None:
        count = len(curves)
        panels = figure.subplots(count, 1) if narrow else figure.subplots(1, count, sharey=True)
        for axes, (title, lines) in zip(panels, curves.items(), strict=True):
            _spectrum(_plain_axes(axes), lines)
            axes.set_title(title, fontsize=10)
        panels[count // 2 if narrow else 0].set_ylabel("signal over noise, relative", fontsize=9)
        for axes in panels[-1:] if narrow else panels:
            axes.set_xlabel("mode k / n", fontsize=9)
        handles = panels[0].get_legend_handles_labels()
        columns = 1 if narrow else 3
        figure.legend(*handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)

    return _twice(name, draw, 3.2, 1.2 + 2.1 * len(curves))


def _spectrum(axes: Any, lines: Mapping[str, Curve]) -> None:
    axes.axhline(1, color="0.8", linewidth=1)
    for (label, curve), (color, marker, dash) in zip(lines.items(), _LOOKS, strict=False):
        low, high = curve.interval
        axes.fill_between(curve.position[1:], low[1:], high[1:], color=color, alpha=0.15, linewidth=0)
        axes.plot(curve.position[1:], curve.ratio[1:], dash, color=color, marker=marker, label=label, ms=4)
    mean = next(iter(lines.values()))  # the mean mode is the same in every order
    ends = [[mean.ratio[0] - mean.interval[0, 0]], [mean.interval[1, 0] - mean.ratio[0]]]
    axes.errorbar([-0.06], [mean.ratio[0]], ends, color=GREEN, marker="D", markersize=4)
    axes.set_ylim(0, 2)
    axes.set_xticks([-0.06, 0.25, 0.5, 0.75, 1], ["mean", "0.25", "0.5", "0.75", "1"])


def training(
    name: str, layers: dict[str, Array], cells: Mapping[str, str], arms: Mapping[str, str]
) -> list[Drawing]:
    """Along training: the weights' roughness along the channel, and n times the mean's share."""
    layers = layers | {"share": layers["weight_mean_share"] * layers["channels"]}
    words = ("roughness (white noise: 1)", "mean mode's share, times n")

    def draw(figure: Any, narrow: bool) -> None:
        shape = {"nrows": len(cells), "ncols": 2} if narrow else {"nrows": 2, "ncols": len(cells)}
        grid = figure.subplots(**shape, sharey="col" if narrow else "row", squeeze=False)
        panels = grid.T if narrow else grid  # a measure a row, a cell a column
        for column, (cell, title) in enumerate(cells.items()):
            _along_training(panels[:, column], layers, cell, arms)
            panels[0, column].set_title(title, fontsize=10, loc="left" if narrow else "center")
        for axes in grid[-1]:
            axes.set_xlabel("epoch", fontsize=9)
        for axes in grid.flat:
            axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else "auto", integer=True))
        for axes in grid[:-1].flat if not narrow else ():
            axes.tick_params(labelbottom=False)
        for row, text in zip(panels, words, strict=True):
            for axes in row if narrow else row[:1]:
                axes.set_ylabel(text, fontsize=8 if narrow else 9)
        handles = panels[0, 0].get_legend_handles_labels()
        columns = 1 if narrow else 3
        figure.legend(*handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)

    return _twice(name, draw, 4.8, 1.0 + 2.2 * len(cells))


def _along_training(
    panels: Sequence[Any], layers: dict[str, Array], cell: str, arms: Mapping[str, str]
) -> None:
    known = np.unique(layers["arm"][layers["cell"] == cell])
    for (arm, label), (color, marker, dash) in zip(arms.items(), _LOOKS, strict=True):
        if arm not in known:
            continue
        for axes, key in zip(panels, ("weight_roughness", "share"), strict=True):
            epochs, mean, (low, high) = mechanism.along_training(
                layers, key, cell=cell, arm=arm, order="index"
            )
            axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(epochs, mean, dash, color=color, marker=marker, markersize=4, label=label)
    for axes in panels:
        axes.axhline(1, color="0.8", linewidth=1, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)


def widths(
    name: str, curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], at: Sequence[float]
) -> list[Drawing]:
    """A panel a cell: error over the share of the channels that are left, on a logarithmic axis."""
    rows = (len(curves) + 1) // 2

    def draw(figure: Any, narrow: bool) -> None:
        grid = figure.subplots(len(curves) if narrow else rows, 1 if narrow else 2, squeeze=False)
        panels = grid.flatten()
        for axes, (title, lines) in zip(panels, curves.items(), strict=False):
            _width(axes, lines, at)
            axes.set_title(title, fontsize=10)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel("channels left, nothing trained after", fontsize=9)
        figure.supylabel("test error, %", fontsize=9)
        handles = panels[0].get_legend_handles_labels()
        columns = 1 if narrow else 2
        figure.legend(*handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)

    return _twice(name, draw, 1.2 + 2.2 * rows, 1.6 + 2.1 * len(curves))


def _width(axes: Any, lines: Mapping[str, Sequence[Sequence[float]]], at: Sequence[float]) -> None:
    looks = [(BLACK, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", ":"), (BLUE, "v", "-."), ("0.5", "D", "")]
    for (label, errors), (color, marker, dash) in zip(lines.items(), looks, strict=True):
        shown = [(width, values) for width, values in zip(at, errors, strict=True) if values]
        for width, values in shown:
            axes.plot([width] * len(values), values, marker, color=color, markersize=2.5, alpha=0.5)
        mean = [float(np.mean(values)) for _, values in shown]
        axes.plot([w for w, _ in shown], mean, dash, color=color, marker=marker, ms=5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 40, 60, 80]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xticks([0.25, 0.5, 0.75, 1], ["1/4", "1/2", "3/4", "full"])
    axes.invert_xaxis()
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


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


def _twice(name: str, draw: Callable[[Any, bool], None], height: float, narrow: float) -> list[Drawing]:
    """The figure, and ``NAME-narrow`` for a phone: `draw` fills a figure. Heights are in inches."""
    figures = _figure(height), _figure(narrow, width=4)
    draw(figures[0], False)
    draw(figures[1], True)
    return [Drawing(name, figures[0], "", ""), Drawing(f"{name}-narrow", figures[1], "", "")]


def _plain_axes(axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def _figure(height: float, width: float = 7.2) -> Any:
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

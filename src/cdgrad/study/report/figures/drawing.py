"""How a report draws, without matplotlib's global state.

Colors are Okabe and Ito's, which color-blind readers tell apart; arms differ in marker and dash, too.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from cdgrad.study.spec import Spec

_COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
WIDTH = 5.6  # inches: on a telephone, text of 10 points is still some 7 points high
_HANDLE = 0.85  # inches that a legend's line takes, with the gap to the next column
_LINE = 0.2  # inches from a line of a legend to the next
_TICK = 0.6  # inches for the number at a tick of an axis of differences
_LONGEST = 100  # characters of a cell's name in that of a file
_PAIR = 2.0  # inches, beyond which the names of two arms stand on two lines


@dataclass(frozen=True)
class Drawing:
    """A drawn figure with its file's base name and its words."""

    name: str
    figure: Figure
    alt: str
    caption: str

    def png(self) -> bytes:
        """The figure at 160 dots an inch."""
        return self._saved("png", dpi=160)

    def svg(self) -> bytes:
        """The figure as a vector image, the same bytes every time."""
        # The salt and the missing date make it reproducible.
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            return self._saved("svg", metadata={"Date": None})

    def pdf(self) -> bytes:
        """The figure as a page of a PDF, the same bytes every time."""
        return self._saved("pdf", metadata={"CreationDate": None})

    def _saved(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


def file_name(kind: str, cell: str) -> str:
    """A file's base name.

    A cell of several studies may be named after a path: what no file can have is replaced, and a hash of the
    cell's name keeps two such files apart.
    """
    plain = re.sub(r"[^A-Za-z0-9._+= -]", "_", cell)[:_LONGEST]
    if plain != cell:
        plain = f"{plain}-{hashlib.sha256(cell.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"{kind}-{plain}" if cell else kind


def canvas(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, one below the other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(panels, squeeze=False)[:, 0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
    return figure, axes


def error_axis(axis: Axis, lowest: float, highest: float) -> None:
    """Errors or other results: logarithmic where they span more than a factor of 3, with plain numbers."""
    if highest < 3 * lowest or lowest <= 0:
        return
    axis.axes.set_yscale("log")
    plain_logarithmic(axis)


def plain_logarithmic(axis: Axis, decades: float = 1.0) -> None:
    """Plain numbers on a logarithmic axis: at 1, 2 and 5 times the powers of ten, or at those alone."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades <= 2 else (1,)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def difference_ticks(axis: Axis, inches: float) -> None:
    """Ticks of an axis of differences, so few that their numbers fit, with plain numbers of any size."""
    axis.set_major_locator(MaxNLocator(max(2, int(inches / _TICK)), steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FormatStrFormatter("%g"))


def width_of(text: str, size: float = 10) -> float:
    """Inches that the longest line of a text takes."""
    font = FontProperties(size=size)
    lines = (text_to_path.get_text_width_height_descent(t, font, ismath=False) for t in text.split("\n"))
    return max(width for width, *_ in lines) / 72


def wrapped(text: str, inches: float) -> str:
    """A text on lines of at most `inches`, unless a single word takes more."""
    first, *rest = text.split(" ")
    lines = [first]
    for word in rest:
        longer = f"{lines[-1]} {word}"
        lines[-1:] = [longer] if width_of(longer) <= inches else [lines[-1], word]
    return "\n".join(lines)


def row_names(names: Sequence[str]) -> list[str]:
    """The comparisons' names beside their rows, those of two arms on two lines where one would be long."""
    if max(map(width_of, names)) <= _PAIR:
        return [*names]
    return [name.replace(" vs. ", "\nvs. ") for name in names]


def legend(figure: Figure, axes: Axes) -> None:
    """The arms, above the panels, which keep their height where there are many."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(3, max(1, int((WIDTH - 0.1) / (max(map(width_of, labels)) + _HANDLE))))
    figure.set_figheight(figure.get_figheight() + _LINE * max(0, math.ceil(len(labels) / columns) - 2))
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=columns, handlelength=3)


def look(spec: Spec, arm: str) -> tuple[str, str, str]:
    """Color, marker and dash; the baseline is black."""
    order = [spec.baseline, *(name for name in spec.arms if name != spec.baseline)]
    return _numbered(order.index(arm))


def look_of_contrast(spec: Spec, name: str) -> tuple[str, str, str]:
    """Color, marker and dash of a comparison: its arm's, or its own where two may share an arm."""
    if not spec.all_pairs:
        return look(spec, spec.contrasts[name].arm)
    return _numbered(1 + list(spec.contrasts).index(name))


def _numbered(index: int) -> tuple[str, str, str]:
    color, again = index % len(_COLORS), index // len(_COLORS)
    marker, dash = (color + again) % len(_MARKERS), (color + again) % len(_DASHES)
    return _COLORS[color], _MARKERS[marker], _DASHES[dash]

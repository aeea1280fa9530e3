"""The page's tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cdgrad.study.statistics import paired as stats
from cdgrad.tables import markdown as markdown_table
from evidence.build.loading import Row

SIZES = (0.1, 0.2, 0.5)  # points


def matrix(table: Sequence[Row], base: Mapping[str, tuple[float, float]], names: Mapping[str, str]) -> str:
    """A cell a row, an arm a column: difference and interval; bold where a difference is shown."""
    cells = list(dict.fromkeys(row.cell for row in table))
    differences = {(row.cell, row.arm): difference(row.comparison, row.differs) for row in table}
    head = ["network and optimizer", "baseline error (SD), %", *names.values()]
    lines = [
        [cell_name(cell), "{:.2f} ({:.2f})".format(*base[cell])]
        + [differences.get((cell, arm), "not run") for arm in names]
        for cell in cells
    ]
    return markdown(head, lines, right=1)


def listing(table: Sequence[Row], descriptions: Mapping[str, str]) -> str:
    """An arm a row: what it is, its difference and how sure that is, its error, and what was chosen if not one for all."""
    several = len({chosen(row.chosen) for row in table}) > 1
    head = ["arm", "difference, points", "Holm p", "MDD", "error (SD), %", *(["chosen"] if several else [])]
    lines = [
        [
            descriptions[row.arm],
            difference(row.comparison, row.differs),
            probability(row.p),
            number(row.mdd),
            f"{row.error:.2f} ({row.sd:.2f})",
            *([chosen(row.chosen)] if several else []),
        ]
        for row in table
    ]
    return markdown(head, lines, right=1)


def full(table: Sequence[Row]) -> str:
    """Every number of every comparison; cells are named where there are several."""
    several = len({row.cell for row in table}) > 1
    head = [*(["cell"] if several else []), "arm", "difference", "95 % t", "95 % BCa", "p", "Holm p", "MDD"]
    head += [
        "error",
        "SD",
        "win rate",
        "corr.",
        "seeds",
        *(f"for {size}" for size in SIZES),
        "chosen",
        "diverged",
    ]
    lines = [
        [
            *([row.cell] if several else []),
            row.arm,
            number(c.mean, "+"),
            interval(c.interval),
            interval(c.bootstrap),
            probability(c.p),
            probability(row.p),
            number(row.mdd),
            number(row.error),
            number(row.sd),
            f"{100 * c.win_rate:.0f} %",
            number(c.correlation),
            str(c.pairs),
            *(f"{stats.required_pairs(size, c.sd):,}" for size in SIZES),
            chosen(row.chosen),
            str(row.diverged),
        ]
        for row in table
        for c in [row.comparison]
    ]
    return markdown(head, lines, right=1 + several)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], right: int) -> str:
    """A table whose columns from `right` on are aligned to the right."""
    return "\n".join(markdown_table(head, lines, "l" * right + "r" * (len(head) - right)))


def difference(c: stats.Comparison, differs: bool = False) -> str:
    """Mean and half the width of its t interval; bold where a difference is shown."""
    text = plus_minus(c.mean, c.interval)
    return f"**{text}**" if differs else text


def plus_minus(mean: float, ends: stats.Interval) -> str:
    """A mean and half the width of its interval, which is symmetric; unbroken in a column."""
    return f"{mean:+.2f}" if math.isnan(ends.low) else f"{mean:+.2f}\u00a0±\u00a0{half(ends)}"


def half(ends: stats.Interval) -> str:
    """Half the width of an interval."""
    return f"{(ends.high - ends.low) / 2:.2f}"


def interval(ends: stats.Interval) -> str:
    """Both ends, signed."""
    return "-" if math.isnan(ends.low) else f"{ends.low:+.2f} to {ends.high:+.2f}"


def number(value: float, sign: str = "") -> str:
    """Two decimals; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:{sign}.2f}"


def probability(p: float) -> str:
    """Three decimals, or that it is smaller."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int) -> str:
    """A number of comparisons in a sentence."""
    return str(n) if n else "none"


def chosen(values: Mapping[str, Any]) -> str:
    """A trial's values in words."""
    return ", ".join(f"{key.removeprefix('optimizer.')} {value:.2g}" for key, value in values.items())


def cell_name(cell: str) -> str:
    """Network and optimizer in words."""
    network, _, optimizer = cell.rpartition("-")
    return f"{_NETWORKS[network]}, {_OPTIMIZERS[optimizer]}" if network in _NETWORKS else cell


_NETWORKS = {"small-cnn": "small CNN", "resnet8": "ResNet-8", "plain": "plain"}
_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}

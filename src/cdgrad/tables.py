"""Tables as text: plain columns for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table with left-aligned columns."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """The lines of a table in Markdown; `align` has a letter for each column, ``r`` or any other for left."""
    rule = ["---:" if letter == "r" else "---" for letter in align]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def selection(
    processed: Iterable[tuple[str, Sequence[int], int, int, Sequence[int], str]],
    left_alone: Sequence[tuple[str, str]],
) -> str:
    """A table of what is processed, and one of what is left alone and why, where that is anything.

    Args:
        processed: name, shape, channel axis, number of equal intervals, the sizes of unequal ones, a note.
        left_alone: name and reason.
    """
    rows = [
        (name, "x".join(map(str, shape)), str(axis), "+".join(map(str, sizes)) or str(groups), note)
        for name, shape, axis, groups, sizes, note in processed
    ]
    lines = plain(("processed", "shape", "axis", "groups", ""), rows)
    if not rows:
        lines = ["nothing to direct" if left_alone else "nothing to direct: the model has no parameter"]
    if left_alone:
        lines += ["", *plain(("left alone", "because"), left_alone)]
    return "\n".join(lines)

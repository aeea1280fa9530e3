"""A report as a value: sections of sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Table:
    """Text cells.

    Attributes:
        title: above the table.
        header: the columns' names.
        rows: the cells of each row.
        note: below the table.
        align: a letter a column, as in LaTeX: ``r`` numbers, ``l`` words, ``p`` words that may wrap.
        grouped: whether the first column names the group to which the rows from there on belong.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    align: str
    grouped: bool = False

    def __post_init__(self) -> None:
        if len(self.align) != len(self.header) or not set(self.align) <= {*"lrp"}:
            raise ValueError(f"expected a letter l, r or p for each of {self.header}, got {self.align!r}")


class Figure(Protocol):
    """A picture: base name of its file, alternative text, caption."""

    @property
    def name(self) -> str: ...
    @property
    def alt(self) -> str: ...
    @property
    def caption(self) -> str: ...
    def svg(self) -> bytes: ...
    def png(self) -> bytes: ...
    def pdf(self) -> bytes: ...


@dataclass(frozen=True)
class Section:
    """A part of a document: tables and figures in reading order.

    A terminal leaves out the sentences, the figures, and all of a section that is a `detail`.
    """

    title: str
    sentences: Sequence[str] = ()
    parts: Sequence[Table | Figure] = ()
    detail: bool = False

    @property
    def tables(self) -> list[Table]:
        """The tables among the parts."""
        return [part for part in self.parts if isinstance(part, Table)]

    @property
    def figures(self) -> list[Figure]:
        """The figures among the parts."""
        return [part for part in self.parts if not isinstance(part, Table)]


@dataclass(frozen=True)
class Document:
    """All that a report says: verdicts, remarks, and the sections that support them."""

    title: str
    summary: str
    verdicts: Sequence[str]
    remarks: Sequence[str]
    sections: Sequence[Section]
    environment: Sequence[str]
    spec: str

    @property
    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [figure for section in self.sections for figure in section.figures]

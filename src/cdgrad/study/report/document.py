"""A report as a value: sections of sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_WORDS = ("arm", "what", "cell", "part", "chosen")


@dataclass(frozen=True)
class Table:
    """Text cells; columns of words are left-aligned, those of numbers to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def is_text(self, column: int) -> bool:
        """Whether a column holds words."""
        return self.header[column] in _WORDS


class Figure(Protocol):
    """A picture: base name of its file, text for who cannot see it, caption."""

    @property
    def name(self) -> str: ...
    @property
    def alt(self) -> str: ...
    @property
    def caption(self) -> str: ...
    def svg(self) -> bytes: ...


@dataclass(frozen=True)
class Section:
    """A part of a document; its sentences are for the files, and so is all of a `detail`."""

    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    detail: bool = False


@dataclass(frozen=True)
class Document:
    """All that a report says: what it comes to, what to know before believing it, and what shows it."""

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

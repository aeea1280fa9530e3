"""A document as terminal text and as Markdown. For a browser: `html_page`."""

from __future__ import annotations

import io
import re
from urllib.parse import quote

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cdgrad.study.report.document import Document, Table
from cdgrad.study.shown import lines as lines_of
from cdgrad.study.shown import one_line
from cdgrad.tables import markdown as markdown_table

_WORDS = 12  # columns of a terminal, at least, for words that may be folded


def to_terminal(document: Document, console: Console) -> None:
    """Print the tables and the verdicts in 80 columns; the files have the details."""
    console.print(Text(one_line(document.title), style="bold"))
    console.print(Text(one_line(document.summary), style="dim"))
    printed: set[str] = set()
    for section in document.sections:
        if section.detail:
            continue
        if section.title:
            console.print()
            console.rule(
                Text(section.title, style="bold"),
                align="left",
                characters="\N{BOX DRAWINGS LIGHT HORIZONTAL}",
            )
        for table in section.tables:
            console.print()
            console.print(Text(one_line(table.title), style="bold"))
            _print_table(table, console)
            if table.note not in printed:  # the tables of all cells have the same
                console.print(Text(one_line(table.note), style="dim"))
            printed.add(table.note)
    console.print()
    points = RichTable.grid(padding=(0, 1, 0, 0))
    for sentence in document.remarks:
        points.add_row("-", Text(one_line(sentence)))
    for sentence in document.verdicts:  # last, where a reader's eye is when the command has ended
        points.add_row("-", Text(one_line(sentence), style="bold"))
    console.print(points)


def markdown(document: Document) -> str:
    """GitHub's dialect; figures are links to the files beside it."""
    lines = [f"# {_plain(document.title)}", "", f"{_plain(document.summary)}.", ""]
    lines += [f"- {_plain(sentence)}" for sentence in (*document.verdicts, *document.remarks)]
    for section in document.sections:
        if section.title:
            lines += ["", f"## {_plain(section.title)}"]
        if section.sentences:
            lines += ["", *(f"- {_plain(sentence)}" for sentence in section.sentences)]
        for part in section.parts:
            if isinstance(part, Table):
                lines += ["", f"{'###' if section.title else '##'} {_plain(part.title)}", ""]
                lines += [*markdown_rows(part), "", _plain(part.note)]
            else:
                lines += [
                    "",
                    f"![{_plain(part.alt)}]({quote(part.name, safe='+=')}.png)",
                    "",
                    _plain(part.caption),
                ]
    lines += ["", "## Environment", "", *(f"- {_plain(line)}" for line in document.environment)]
    # A fence longer than any in the text, so that nothing in it ends the block.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", document.spec)), default=0))
    return "\n".join(
        [*lines, "", "## Specification", "", f"{fence}toml", lines_of(document.spec.strip()), fence, ""]
    )


def markdown_rows(table: Table) -> list[str]:
    """A table's header and rows in Markdown, without its title and note."""
    header, *rows = (list(map(_plain, cells)) for cells in (table.header, *table.rows))
    return markdown_table(header, rows, table.align)


def _print_table(table: Table, console: Console) -> None:
    """Print a table; where the terminal is too narrow, lines go beyond its edge, whole, and it wraps them."""
    if (least := _least_width(table)) <= console.width:
        console.print(_grid(table))
        return
    wide = io.StringIO()
    Console(width=least, file=wide, highlight=False, color_system=None).print(_grid(table))
    console.out(wide.getvalue(), end="", highlight=False)


def _least_width(table: Table) -> int:
    """Columns of a terminal that a table needs: a number that is folded is read as two, and words vanish."""
    columns = zip(table.header, *table.rows, strict=True)
    widths = [max(cell_len(one_line(cell)) for cell in column) for column in columns]
    return sum(
        2 + (width if letter == "r" else min(width, _WORDS))
        for width, letter in zip(widths, table.align, strict=True)
    )


def _grid(table: Table) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title, letter in zip(table.header, table.align, strict=True):
        number = letter == "r"
        grid.add_column(title, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    return grid


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line(text))
    escaped = re.sub(r"&(?=#?\w+;)", r"\\&", escaped)
    # At the beginning of an item, a number with a dot would open a list.
    return re.sub(r"^(\d+)([.)])(?= )", r"\1\\\2", escaped)

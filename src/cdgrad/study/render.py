"""A document as terminal text, Markdown and one self-contained HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Text cells; the first column is left-aligned, and so is "what", numbers to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def is_text(self, column: int) -> bool:
        """Whether a column holds words."""
        return self.header[column] in ("arm", "what")


@dataclass(frozen=True)
class Document:
    """All that a report says, apart from its figures."""

    title: str
    summary: str
    tables: Sequence[Table]
    sentences: Sequence[str]
    environment: Sequence[str]
    spec: str


@dataclass(frozen=True)
class Figure:
    """A picture: file name, text for who cannot see it, caption, and the SVG."""

    name: str
    alt: str
    caption: str
    svg: bytes


def to_terminal(document: Document, console: Console) -> None:
    """Print tables and sentences; 80 columns are enough."""
    console.print(Text(document.title, style="bold"))
    console.print(Text(document.summary, style="dim"))
    for table in document.tables:
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for column, name in enumerate(table.header):
            text = table.is_text(column)
            grid.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
        for row in table.rows:
            grid.add_row(*map(Text, row))
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(grid)
        console.print(Text(table.note, style="dim"))
    console.print()
    for sentence in document.sentences:
        console.print(Text(sentence))


def markdown(document: Document, figures: Sequence[Figure]) -> str:
    """GitHub's dialect; figures are links to the files beside it."""
    lines = [f"# {_plain(document.title)}", "", f"{_plain(document.summary)}.", ""]
    for sentence in document.sentences:
        lines += [f"- {_plain(sentence)}"]
    for table in document.tables:
        align = [":--" if table.is_text(column) else "--:" for column in range(len(table.header))]
        lines += ["", f"## {_plain(table.title)}", ""]
        lines += [_row(cells) for cells in (table.header, align, *table.rows)]
        lines += ["", _plain(table.note)]
    for figure in figures:
        lines += ["", f"![{_plain(figure.alt)}]({figure.name})", "", _plain(figure.caption)]
    lines += ["", "## Environment", "", *(f"- {_plain(line)}" for line in document.environment)]
    return "\n".join([*lines, "", "## Specification", "", "```toml", document.spec.strip(), "```", ""])


def html(document: Document, figures: Sequence[Figure]) -> str:
    """One page that needs no network: pictures are embedded, all values escaped."""
    tables = "".join(map(_html_table, document.tables))
    pictures = "".join(map(_html_figure, figures))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(document.title)}</h1>
<p class="note">{escape(document.summary)}</p>
<ul class="verdict">{"".join(f"<li>{escape(s)}</li>" for s in document.sentences)}</ul>
{pictures}
{tables}
<h2>Environment</h2>
<ul>{"".join(f"<li>{escape(line)}</li>" for line in document.environment)}</ul>
<h2>Specification</h2>
<pre>{escape(document.spec.strip())}</pre>
</body>
</html>
"""


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 52rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 600; padding-left: 1.2rem; } .note { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
.text { text-align: left; white-space: normal; }
figure { margin: 1.5rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        classes = [' class="text"' if table.is_text(column) else "" for column in range(len(cells))]
        parts = [f"<{tag}{c}>{escape(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True)]
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead>{row(table.header, "th")}</thead>'
        f'<tbody>{body}</tbody></table></div><p class="note">{escape(table.note)}</p>'
    )


def _html_figure(figure: Figure) -> str:
    source = f"data:image/svg+xml;base64,{b64encode(figure.svg).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(figure.alt)}">'
        f'<figcaption class="note">{escape(figure.caption)}</figcaption></figure>'
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text

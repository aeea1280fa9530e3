"""A study for a publication: figures as SVG and PDF, tables in LaTeX and Markdown, a methods paragraph,
references, and the runs as CSV and Parquet.

Every sentence and number follows from the specification and the records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.records import csv_text, to_parquet
from cdgrad.study.report.document import Document, Section, Table
from cdgrad.study.report.methods import methods
from cdgrad.study.report.references import bibtex, cites
from cdgrad.study.report.text import markdown_rows
from cdgrad.study.shown import one_line
from cdgrad.study.statistics import Results

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")


def write(results: Results, document: Document, folder: Path) -> list[Path]:
    """Write every file into `folder`, which is created; their paths. After an error none is left.

    Raises:
        StudyError: a file of one of the names exists, or the folder cannot be written.
    """
    measure, paragraph = results.spec.measure.name, methods(results)
    texts = {
        "methods.md": paragraph + "\n",
        "methods.tex": latex(paragraph) + "\n",
        "references.bib": bibtex(paragraph),
        "runs.csv": csv_text(results.final_runs, measure),
    }
    if results.searches:
        texts["trials.csv"] = csv_text(results.trial_runs, measure)
    for name, table in table_files(document.sections).items():
        texts[f"tables/{name}.tex"] = latex_table(table)
        texts[f"tables/{name}.md"] = "\n".join([*markdown_rows(table), "", table.note, ""])
    figures = {f"figures/{d.name}.{kind}": d for d in document.figures for kind in ("svg", "pdf")}
    names = [*texts, *figures, "runs.parquet"]
    if existing := [name for name in names if os.path.lexists(folder / name)]:
        raise StudyError(f"{folder / existing[0]} exists already; choose another --to, or move it away")
    written: list[Path] = []
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        contents = chain(
            ((name, text.encode()) for name, text in texts.items()),
            ((name, d.svg() if name.endswith("svg") else d.pdf()) for name, d in figures.items()),
        )
        for name, content in contents:
            with (folder / name).open("xb") as stream:  # never over a file that has just appeared
                written.append(folder / name)
                stream.write(content)
        to_parquet(results.runs, folder / "runs.parquet", measure)
    except BaseException as error:
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StudyError(f"cannot write in {folder}: {error.strerror}; choose another --to") from error
        raise
    return [folder / name for name in names]


def table_files(sections: Sequence[Section]) -> dict[str, Table]:
    """Every table under a name of its own: section and title, the latter up to a comma where that will do."""
    placed = [(section.title, table) for section in sections for table in section.tables]
    short = [_slug(f"{place} {table.title.partition(',')[0]}") for place, table in placed]
    files: dict[str, Table] = {}
    for name, (place, table) in zip(short, placed, strict=True):
        unique = name if short.count(name) == 1 else _slug(f"{place} {table.title}")
        files[unique if unique not in files else f"{unique}-{len(files)}"] = table
    return files


def latex(text: str) -> str:
    """Text for LaTeX: special characters escaped, references in brackets as citations."""
    return cites("".join(_TEX.get(c, c) for c in one_line(text)))


def latex_table(table: Table) -> str:
    """A table that needs no package; its title is the caption, its note follows."""
    columns = table.align.replace("p", "l")

    def row(cells: Sequence[str]) -> str:
        return " & ".join(map(_latex_cell, cells)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            row(table.header),
            r"\hline",
            *map(row, table.rows),
            r"\hline",
            r"\end{tabular}",
            "",
            rf"\footnotesize {latex(table.note)}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(text: str) -> str:
    """A cell for LaTeX: a minus before a number is no hyphen, and what is missing is a dash."""
    escaped = "".join(_TEX.get(c, c) for c in one_line(text))
    return "--" if escaped == "-" else _MINUS.sub("$-$", escaped)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

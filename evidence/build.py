"""Rebuilds the pages and figures of the evidence from the committed records: ``make evidence``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from cdgrad.study.report.figures.drawing import Drawing
from evidence import sections
from evidence.records import ROOT

DOCS = ROOT / "docs"


def build() -> tuple[Mapping[str, str], list[Drawing]]:
    """The pages by file name, and the figures. Reads the records and templates, writes nothing."""
    parts, figures = sections.all_parts()
    templates = {"evidence.md": "page.md", "evidence-tables.md": "tables.md"}
    pages = {
        name: Template((ROOT / "evidence" / template).read_text(encoding="utf-8")).substitute(parts)
        for name, template in templates.items()
    }
    return pages, figures


def main() -> None:
    """Write the pages to docs/ and the figures to docs/evidence/."""
    pages, figures = build()
    (DOCS / "evidence").mkdir(exist_ok=True)
    for name, text in pages.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    for drawing in figures:
        (DOCS / "evidence" / f"{drawing.name}.svg").write_bytes(drawing.svg())
    written = [f"docs/{name}" for name in pages] + [f"docs/evidence/{d.name}.svg" for d in figures]
    print("\n".join(str(Path(name)) for name in written))


if __name__ == "__main__":
    sys.exit(main())

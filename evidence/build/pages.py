"""The pages, sentences and figures of the evidence, computed from the committed records."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from cdgrad.study.report.figures.drawing import Drawing
from evidence.build import sections
from evidence.build.headline import Sentences, sentences
from evidence.build.loading import ROOT

TEMPLATES = ROOT / "evidence" / "pages"


def build() -> tuple[Mapping[str, str], Sentences, list[Drawing]]:
    """The pages by file name, the sentences that other files quote, and the figures. Writes nothing."""
    parts, figures = sections.all_parts()
    quoted = sentences(parts)
    pages = {
        path.name: Template(path.read_text(encoding="utf-8")).substitute(
            parts, headline=quoted.headline, beside=quoted.beside
        )
        for path in sorted(TEMPLATES.glob("*.md"))
    }
    return pages, quoted, figures

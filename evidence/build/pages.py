"""The pages, sentences and figures of the evidence, computed from the committed records."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from cdgrad.study.report.figures.drawing import Drawing
from evidence.build import sections
from evidence.build.loading import ROOT

DOCS = ROOT / "docs"
TEMPLATES = ROOT / "evidence" / "pages"
_VERDICT = (
    "**Does it help? Not where it was studied.** Over $claims_cells combinations of network and optimizer on handwritten\n"
    "digits, tuned with equal budgets, the average change of the error is $average_reweighted points with the\n"
    "re-weighted metric and $average_sobolev with the Sobolev metric (95 % intervals; positive is worse).\n"
    "At equal learning rates a lower error is shown in $rates_better of $rates_count comparisons. [The evidence]($link).\n"
)


def build() -> tuple[Mapping[str, str], Mapping[str, str], list[Drawing]]:
    """The pages by file name, the verdict by the file that quotes it, and the figures. Writes nothing."""
    parts, figures = sections.all_parts()
    pages = {
        path.name: Template(path.read_text(encoding="utf-8")).substitute(parts)
        for path in sorted(TEMPLATES.glob("*.md"))
    }
    links = {"README.md": "docs/evidence.md", "docs/index.md": "evidence.md"}
    verdicts = {file: Template(_VERDICT).substitute(parts, link=link) for file, link in links.items()}
    return pages, verdicts, figures

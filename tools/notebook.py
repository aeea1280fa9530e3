"""The start page as a notebook: its text, its Python, and its commands as shell cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "start.md"
_FENCE = re.compile(r"^(?:<!-- [^\n]* -->\n)?```(python|sh)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)


def start() -> str:
    """The notebook as JSON; outputs are left out."""
    cells: list[dict[str, object]] = []
    text = re.sub(r"^<!-- quickstart:\w+ -->\n", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    at = 0
    for block in _FENCE.finditer(text):
        _words(cells, text[at : block.start()])
        language, code = block.groups()
        lines = code.rstrip("\n").split("\n")
        if language == "sh":  # a comment, since installing and studying take minutes
            lines = [f"# {line}" for line in ["run in a terminal:", *lines]]
        _cell(cells, "code", "\n".join(lines))
        at = block.end()
    _words(cells, text[at:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _words(cells: list[dict[str, object]], text: str) -> None:
    if text.strip():
        _cell(cells, "markdown", text.strip())


def _cell(cells: list[dict[str, object]], kind: str, source: str) -> None:
    extra: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": source, **extra}
    cells.append(cell)

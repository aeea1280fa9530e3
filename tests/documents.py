"""The fenced blocks of README and docs, which tests execute."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block; a comment right above it may hold a mark, ``not run: WHY`` or ``file: NAME``."""

    mark: str
    language: str
    code: str


def blocks(document: Path) -> list[Block]:
    """The blocks of a document, in order."""
    return [Block(*parts) for parts in _FENCE.findall(document.read_text(encoding="utf-8"))]

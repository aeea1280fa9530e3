"""Text of unknown origin, made safe to show and to publish.

`one_line` is for all that reaches a terminal or a page, `published` for what leaves the machine in a
report or a record.
"""

from __future__ import annotations

import re
from pathlib import PurePath, PureWindowsPath
from typing import Any, cast

from cdgrad.messages import brief, named, one_line

__all__ = ["brief", "lines", "named", "one_line", "published", "published_values"]

# An absolute path of at least two parts, with or without a drive; not the path of an address. A part but
# the last one may hold single spaces, as names of users and folders do.
_WORD = r"[^\s/\\'\"`:,;()<>|]+"
_PATH = re.compile(rf"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\]{_WORD}(?: {_WORD})*(?=[/\\]))+[/\\]{_WORD}[/\\]?")


def lines(text: str) -> str:
    """`text` with its lines and indentation, each made safe as by `one_line`."""
    return "\n".join(
        "".join(c if c.isprintable() or c == "\t" else " " for c in line) for line in text.splitlines()
    )


def published(text: str) -> str:
    """`text` with every absolute path cut down to its last part: the others name users and machines."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def published_values(values: Any) -> Any:
    """Tables and lists with every text in them published; an absolute path becomes its last part."""
    if isinstance(values, dict):
        return {key: published_values(value) for key, value in cast(dict[str, Any], values).items()}
    if isinstance(values, list):
        return [published_values(value) for value in cast(list[Any], values)]
    if not isinstance(values, str):
        return values
    for kind in (PurePath, PureWindowsPath):
        path = kind(values)
        if (path.is_absolute() or values.startswith("~")) and path.name:
            return path.name
    return published(values)

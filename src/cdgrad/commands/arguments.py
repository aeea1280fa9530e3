"""What the commands share: checks of single arguments, and the specification that an argument names."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdgrad.study.spec import Spec


class UsageError(Exception):
    """An argument that names something that does not exist or is not allowed."""


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def specification(source: str) -> Spec:
    """The study in a TOML file, or a built-in one.

    Raises:
        UsageError: there is neither.
        StudyError: the file is not a valid specification.
    """
    from cdgrad.study import spec

    try:
        return spec.load(source)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None


def check_new_file(file: Path, flag: str) -> None:
    """Refuse, before any work, a file that exists or that could not be written when the work is done."""
    from cdgrad.study.files import obstacle

    if why := obstacle(file):
        raise UsageError(f"{flag} {file} {why}")


def write_new_file(file: Path, content: bytes | memoryview) -> Path:
    """Write a file that `check_new_file` let pass; where that became impossible, into a temporary folder.

    Returns:
        The file that holds the content.
    """
    from cdgrad.study.files import obstacle, replace

    try:
        if obstacle(file):
            raise FileExistsError
        replace(file, content)
    except OSError:
        file = Path(tempfile.mkdtemp(prefix="cdgrad-")) / file.name
        replace(file, content)
    return file


def failed(status: int, message: str) -> int:
    """Print one line on standard error; returns `status`."""
    print(f"cdgrad: {message}", file=sys.stderr)
    return status

"""What the commands share: checks of single arguments, and the specification that an argument names."""

from __future__ import annotations

import argparse
import sys
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


def check_folder_of(file: Path, flag: str) -> None:
    """Refuse a file whose folder does not exist, before work whose result could then not be written."""
    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent} for {flag}; create it first")


def failed(status: int, message: str) -> int:
    """Print one line on standard error; returns `status`."""
    print(f"cdgrad: {message}", file=sys.stderr)
    return status

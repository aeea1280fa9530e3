"""What the commands share: checks of single arguments, and the specification that an argument names."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cdgrad.study.callables import traceback_of
from cdgrad.study.shown import one_line

if TYPE_CHECKING:
    from cdgrad.study.spec import Spec


class UsageError(Exception):
    """An argument that names something that does not exist or is not allowed."""


def integer(least: int, most: int) -> Callable[[str], int]:
    """The type of an argument that is an integer from `least` to `most`."""

    def read(text: str) -> int:
        digits = text.isascii() and text.isdecimal()
        # int() refuses thousands of digits with an error of its own.
        value = least - 1 if not digits else int(text) if len(text) <= 20 else most + 1
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be an integer of {bound}, got {text!r:.60}")
        return value

    return read


count = integer(1, 100_000)


def finite(text: str) -> float:
    """The type of an argument that is a finite number."""
    if not math.isfinite(value := _number(text)):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r:.60}")
    return value


def positive(text: str) -> float:
    """The type of an argument that is a positive, finite number."""
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r:.60}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a study, its output directory and its workers."""
    parser.add_argument("spec", metavar="SPEC", help="a TOML file, or a built-in name such as quickstart")
    parser.add_argument(
        "--out", metavar="DIR", help="output directory (default: `out` in SPEC, else runs/NAME)"
    )
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="number of parallel workers, one thread each (default: `workers` in SPEC)",
    )
    parser.add_argument(
        "--rounding",
        type=integer(2, 1000),
        metavar="K",
        help="add an arm that differs from the baseline by rounding errors only (rounding = K): the noise "
        "floor",
    )


def specification(source: str, rounding: int | None = None) -> Spec:
    """The study in a TOML file, or a built-in one; with `rounding`, the arm of the noise floor is added.

    Raises:
        UsageError: there is neither.
        StudyError: the file is not a valid specification, or the arm cannot be added.
    """
    from cdgrad.study import spec

    try:
        study = spec.load(source)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None
    return study if rounding is None else spec.with_rounding(study, rounding)


def check_graphs(spec: Spec, device: str) -> None:
    """Refuse ``schedule.graph = true`` on the CPU before anything is executed.

    Raises:
        UsageError: a cell demands CUDA graphs, and the device is the CPU.
    """
    for cell, tables in spec.cells.items():
        if device == "cpu" and tables.get("schedule", {}).get("graph") is True:
            where = f" in cell {cell}" if cell else ""
            raise UsageError(
                f"schedule.graph = true{where} needs a CUDA device, and the runs would be on the CPU; add "
                "--device cuda, or remove the key, which uses graphs wherever there is a GPU"
            )


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
    with suppress(OSError, ValueError):  # standard error may be closed; the exit status remains
        print(f"cdgrad: {one_line(message)}", file=sys.stderr)
    return status


def unexpected(error: Exception) -> str:
    """A line for an error that no command foresaw; its traceback is written to a temporary file."""
    line = f"unexpected {type(error).__name__}: {one_line(error):.300}"
    kept = traceback_file(error)
    return f"{line}{kept}, please report it" if kept else line


def traceback_file(error: Exception) -> str:
    """Write the traceback of an error to a temporary file; returns a clause that names it, or nothing."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cdgrad-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(traceback_of(error))
    except OSError:
        return ""
    return f"; the traceback is in {file.name}"

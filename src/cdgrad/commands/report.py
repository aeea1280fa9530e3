"""``cdgrad report``: print the tables of a study and write its report."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "print the tables of a study and write its report"
DESCRIPTION = "Print the tables of a study; write report.html, report.md, runs.csv and the plots."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="output directory of a study")


def run(options: argparse.Namespace) -> int:
    """Print and write the report."""
    show(Path(options.folder))
    return 0


def show(folder: Path) -> None:
    """Print the tables of the study in `folder`, and write its report there."""
    from rich.console import Console

    from cdgrad.study import records, render, report

    results = report.read(folder)
    document = report.document(results)
    files = report.write(results, folder, document)
    console = Console(highlight=False, soft_wrap=False)
    render.to_terminal(document, console)
    plots = [str(path) for path in files if path.suffix == ".png"]
    others = [str(path) for path in files if path.suffix != ".png"]
    others += plots if len(plots) <= 3 else [f"{folder / '*.png'} ({len(plots)} plots)"]
    print("\nwritten:", *others, f"records: {folder / records.FILE}", sep="\n")

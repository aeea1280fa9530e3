"""``cdgrad export``: a study's figures, tables and methods for a publication."""

from __future__ import annotations

import argparse
from pathlib import Path

from cdgrad.commands.report import add_comparison_arguments, asked_of

HELP = "write a study's figures, tables and methods for a publication"
DESCRIPTION = (
    "Write figures as SVG and PDF, tables in LaTeX and Markdown, a methods paragraph, BibTeX references, and "
    "the runs as CSV and Parquet. Existing files are not overwritten."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="output directory of a study")
    parser.add_argument(
        "--to", required=True, type=Path, metavar="FOLDER", help="directory to write the files to"
    )
    add_comparison_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the files and print their names."""
    from cdgrad.study.report import compose, paper

    results, document = asked_of(options).report(compose.read(Path(options.folder)))
    print("written:", *paper.write(results, document, options.to), sep="\n")
    return 0

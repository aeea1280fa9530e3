"""``cdgrad record``: write a study's runs to one Parquet file, from which evidence is computed."""

from __future__ import annotations

import argparse
from pathlib import Path

from cdgrad.commands.arguments import check_new_file

HELP = "write the runs of a study to one Parquet file"
DESCRIPTION = (
    "Write every run of a study, trials included, to one Parquet file: the record that evidence reads."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="output directory of a study")
    parser.add_argument(
        "--to",
        metavar="FILE",
        required=True,
        help="file to write, such as evidence/records/NAME.parquet; it must not exist yet",
    )


def run(options: argparse.Namespace) -> int:
    """Read the runs and write the file, which must be new."""
    file = Path(options.to)
    check_new_file(file, "--to")
    from cdgrad.study.records import parquet
    from cdgrad.study.statistics import results

    study = results.read(Path(options.folder))
    parquet.to_parquet(study.runs, file)
    print(f"{len(study.runs)} runs written to {file}")
    return 0

"""``cdgrad record``: write a study's runs to one Parquet file, from which evidence is computed."""

from __future__ import annotations

import argparse
from pathlib import Path

from cdgrad.commands.arguments import UsageError, check_folder_of

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
        help="file to write, such as evidence/records/NAME.parquet; only an earlier record is replaced",
    )


def run(options: argparse.Namespace) -> int:
    """Read the runs and write the file.

    Raises:
        UsageError: FILE exists and is not a record, or its folder does not exist.
    """
    from cdgrad.study import StudyError
    from cdgrad.study.records import parquet
    from cdgrad.study.statistics import results

    file = Path(options.to)
    check_folder_of(file, "--to")
    if file.exists():
        try:
            parquet.from_parquet(file)
        except StudyError as error:
            raise UsageError(f"--to {file} is not a record of a study and is not replaced: {error}") from None
    study = results.read(Path(options.folder))
    parquet.to_parquet(study.runs, file)
    print(f"{len(study.runs)} runs written to {file}")
    return 0

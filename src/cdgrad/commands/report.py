"""``cdgrad report``: print the tables of a study and write its report."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from cdgrad.commands.arguments import failed
from cdgrad.study import StudyError

HELP = "print the tables of a study and write its report"
DESCRIPTION = "Print the tables of a study; write report.html, report.md, runs.csv and the plots."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="output directory of a study")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="serve the page on this machine, refreshed while a study runs, until Ctrl-C; nothing is written",
    )


def run(options: argparse.Namespace) -> int:
    """Print and write the report, or serve its page."""
    return watch(Path(options.folder)) if options.watch else show(Path(options.folder))


def watch(folder: Path) -> int:
    """Serve the report of the study in `folder` until Ctrl-C."""
    from cdgrad.study import records
    from cdgrad.study.report import live_page

    records.Store(folder, write=False).close()  # a mistyped folder is an error now, not a page
    with live_page.served(folder) as address:
        print(f"report: {address} (Ctrl-C ends)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def show(folder: Path) -> int:
    """Print the tables of the study in `folder`, then write its report there; returns the exit status."""
    from rich.console import Console

    from cdgrad.study import records
    from cdgrad.study.report import compose, text

    results = compose.read(folder)
    document = compose.document(results)
    console = Console(highlight=False, soft_wrap=False)
    text.to_terminal(document, console)
    try:
        files = compose.write(results, folder, document)
    except StudyError as error:
        return failed(1, str(error))
    plots = [str(path) for path in files if path.suffix == ".png"]
    others = [str(path) for path in files if path.suffix != ".png"]
    others += plots if len(plots) <= 6 else [f"{folder / '*.png'} ({len(plots)} plots)"]
    print("\nwritten:", *others, f"records: {folder / records.FILE}", sep="\n")
    return 0

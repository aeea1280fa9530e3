"""``cdgrad report``: print the tables of a study and write its report, or show it in a browser."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from cdgrad.commands.arguments import UsageError, failed
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
    add_comparison_arguments(parser)


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose what is compared."""
    parser.add_argument(
        "--reference",
        metavar="ARM",
        default="",
        help="compare all other arms with ARM (default: as the specification says, or its baseline)",
    )
    parser.add_argument("--all-pairs", action="store_true", help="compare every two arms")
    parser.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="add a table of the time that the runs took to reach X, on the curve that the report draws",
    )


def run(options: argparse.Namespace) -> int:
    """Print and write the report, or serve its page."""
    chosen = {"reference": options.reference, "all_pairs": options.all_pairs, "target": options.target}
    if not options.watch:
        return show(Path(options.folder), **chosen)
    if any(value not in ("", False, None) for value in chosen.values()):
        raise UsageError("--watch shows the comparisons of the specification: leave the other options out")
    return watch(Path(options.folder))


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


def show(folder: Path, *, reference: str = "", all_pairs: bool = False, target: float | None = None) -> int:
    """Print the tables of the study in `folder`, then write its report there; returns the exit status."""
    from rich.console import Console

    from cdgrad.study import records
    from cdgrad.study.report import compose, text

    results = compose.read(folder).compared_with(reference, all_pairs=all_pairs)
    document = compose.document(results, target)
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

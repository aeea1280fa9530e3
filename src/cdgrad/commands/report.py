"""``cdgrad report``: print the tables of a study and write its report, or show it in a browser."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cdgrad.commands.arguments import UsageError, failed, finite
from cdgrad.study import StudyError

if TYPE_CHECKING:
    from cdgrad.study.report.compose import Asked
    from cdgrad.study.report.document import Document
    from cdgrad.study.statistics import Results

HELP = "print the tables of a study and write its report"
DESCRIPTION = "Print the tables of a study; write report.html, report.md, runs.csv and the plots."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "folders",
        metavar="DIR",
        nargs="+",
        help="output directory of a study; several are reported as one study with the cells of all",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="output directory for the report of several studies"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="serve the report on this machine, refreshed while the study runs, until Ctrl-C; write no files",
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
        type=finite,
        metavar="X",
        help="add a table of the time that the runs took to reach X on their validation curves",
    )


def asked_of(options: argparse.Namespace) -> Asked:
    """What `add_comparison_arguments` added."""
    from cdgrad.study.report.compose import Asked

    return Asked(options.reference, options.all_pairs, options.target)


def run(options: argparse.Namespace) -> int:
    """Print and write the report, or serve its page."""
    folders = [Path(folder) for folder in options.folders]
    if len(folders) > 1 and options.watch:
        raise UsageError("--watch takes one DIR")
    if len(folders) == 1 and options.to:
        raise UsageError("--to needs several DIR; the report of one study is written into its own folder")
    asked = asked_of(options)
    if len(folders) > 1:
        return show_together(folders, options.to, asked)
    return watch(folders[0], asked) if options.watch else show(folders[0], asked)


def watch(folder: Path, asked: Asked) -> int:
    """Serve the report of the study in `folder` until Ctrl-C."""
    from cdgrad.study import records, spec, statistics
    from cdgrad.study.report import live_page

    # A mistyped folder or arm is an error now, not a page.
    with records.Store(folder, write=False) as store:
        name, text = store.spec()
    asked.compared(statistics.Results.of(spec.parse(text, name, stored=True), ()))
    with live_page.served(folder, asked) as address:
        print(f"report: {address} (Ctrl-C ends)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def show(folder: Path, asked: Asked | None = None) -> int:
    """Print the tables of the study in `folder`, then write its report there; returns the exit status."""
    from cdgrad.study import records
    from cdgrad.study.report import compose

    show_document = _terminal_text()  # first: what is not installed is named before the folder is read
    results, document = (asked or compose.AS_SPECIFIED).report(compose.read(folder))
    status = _print_and_write(show_document, results, document, folder)
    if status == 0:
        print(f"records: {folder / records.FILE}")
    return status


def show_together(folders: Sequence[Path], to: Path | None, asked: Asked) -> int:
    """Print one report of several studies, and write it into `to` where that is given."""
    from cdgrad.study.report import compose

    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    studies = {
        name: asked.compared(compose.read(folder)) for name, folder in zip(names, folders, strict=True)
    }
    results, document = compose.together(studies, asked.target)
    try:
        if to:
            to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot write in {to}: {error.strerror or error}; choose another --to") from error
    return _print_and_write(_terminal_text(), results, document, to)


def _terminal_text() -> Callable[[Document], None]:
    """What prints a document."""
    from rich.console import Console

    from cdgrad.study.report import text

    console = Console(highlight=False, soft_wrap=False)
    return lambda document: text.to_terminal(document, console)


def _print_and_write(
    show_document: Callable[[Document], None], results: Results, document: Document, folder: Path | None
) -> int:
    from cdgrad.study.report import compose

    show_document(document)
    if folder is None:
        return 0
    try:
        files = compose.write(results, folder, document)
    except StudyError as error:
        return failed(1, str(error))
    plots = [str(path) for path in files if path.suffix == ".png"]
    others = [str(path) for path in files if path.suffix != ".png"]
    others += plots if len(plots) <= 6 else [f"{folder / '*.png'} ({len(plots)} plots)"]
    print("\nwritten:", *others, sep="\n")
    return 0

"""``cdgrad log``: the tracebacks of failed runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.shown import lines, one_line

HELP = "print the traceback of a failed run"
DESCRIPTION = "Print the traceback of a failed run; without RUN, or where several match, a line for each."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="output directory of a study")
    parser.add_argument(
        "run", metavar="RUN", nargs="*", help="the run as the study names it, such as: sgd, seed 0"
    )


def run(options: argparse.Namespace) -> int:
    """Print a traceback, or the failed runs."""
    from cdgrad.study.plan.job import run_name
    from cdgrad.study.records import Store
    from cdgrad.study.run import logs

    folder = Path(options.folder)
    with Store(folder, write=False) as store:
        failed = [run for run in store.runs() if run.message]  # a finished run has that of a failed repeat
    matches = logs.matching(failed, options.run)
    if len(matches) == 1:
        print(lines(logs.kept_traceback(folder, matches[0])))
        return 0
    if options.run and not matches:
        listed = "; ".join(run_name(run) for run in failed[:5]) or "none"
        raise StudyError(f"no failed run of {folder} is named {' '.join(options.run)!r}; failed: {listed}")
    for each in matches:
        kept = "" if each.status == "failed" else "; this was a repeat, and the earlier result is kept"
        print(one_line(f"{run_name(each)}: {each.message}{kept}"))
    print(
        f"{len(matches) or 'no'} failed runs"
        + (f"; to print a traceback: cdgrad log {folder} RUN" if matches else "")
    )
    return 0

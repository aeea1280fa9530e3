"""``cdgrad plan``: the runs of a study, their time and the effects they could detect."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdgrad.commands.arguments import add_study_arguments, check_graphs, positive, specification

if TYPE_CHECKING:
    from cdgrad.study.plan import Plan
    from cdgrad.study.records import Run
    from cdgrad.study.report.preview import Seconds
    from cdgrad.study.spec import Spec

HELP = "show the runs of a study, their time and the effects they could detect"
DESCRIPTION = (
    "Print the runs of a study, its splits, its expected time and the differences it could detect, and warn "
    "if it cannot show any. Nothing is recorded."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study_arguments(parser)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device of the timed epoch (default: cpu)"
    )
    parser.add_argument(
        "--sd",
        type=positive,
        metavar="X",
        help="standard deviation of a paired difference, in points or in the metric's unit (default: from "
        "the recorded runs)",
    )
    parser.add_argument(
        "--no-timing",
        action="store_true",
        help="do not time an epoch, nor the start of a worker; the estimate then needs recorded runs",
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    from cdgrad.study.plan import Plan
    from cdgrad.study.report import preview

    spec = specification(options.spec, options.rounding)
    check_graphs(spec, options.device)
    folder = Path(options.out or spec.out)
    runs = recorded(folder)
    seconds = preview.recorded_seconds(spec, runs)
    if not options.no_timing:
        seconds = _timed(spec, seconds, options.device)
    show(Plan(spec, runs, str(folder)), runs, options.workers or spec.workers, seconds, options.sd)
    return 0


def _timed(spec: Spec, recorded: Seconds | None, device: str) -> Seconds | None:
    """Expected seconds with the start of a worker, measured now; None where no epoch can be timed."""
    from cdgrad.study.callables import modules_beside
    from cdgrad.study.report import preview

    if recorded is not None:
        return replace(recorded, start=preview.start_seconds())
    if spec.entry:
        return None
    epochs = "an epoch" if len(spec.cells) == 1 else f"an epoch in each of {len(spec.cells)} cells"
    print(f"timing {epochs} of the baseline (--no-timing skips this) ...", file=sys.stderr, flush=True)
    with modules_beside(spec.folder):
        return preview.timed_seconds(spec, device)


def show(
    plan: Plan,
    runs: list[Run],
    workers: int,
    seconds: Seconds | None,
    sd: float | None = None,
    *,
    stderr: bool = False,
    needs_data: bool = False,
) -> None:
    """Print a plan, given the recorded `runs`; with `needs_data`, refuse data that cannot be read here."""
    from rich.console import Console

    from cdgrad.study.report import preview, text

    document = preview.preview(plan, runs, workers=workers, seconds=seconds, sd=sd, needs_data=needs_data)
    text.to_terminal(document, Console(highlight=False, soft_wrap=False, stderr=stderr))


def recorded(folder: Path) -> list[Run]:
    """The runs recorded in `folder`; none where there is no study yet."""
    from cdgrad.study import records

    if not (folder / records.FILE).exists():
        return []
    with records.Store(folder, write=False) as store:
        return store.runs()

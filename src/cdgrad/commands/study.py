"""``cdgrad study``: run or resume a paired study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cdgrad.commands import plan, report
from cdgrad.commands.arguments import (
    UsageError,
    add_study_arguments,
    check_graphs,
    failed,
    positive,
    specification,
)

if TYPE_CHECKING:
    from cdgrad.study.plan import Plan
    from cdgrad.study.records import Run
    from cdgrad.study.run.engine import Engine


HELP = "run or resume a paired study"
DESCRIPTION = "Run or resume a paired study. Runs that are recorded already are not repeated."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study_arguments(parser)
    parser.add_argument(
        "--allow-code-change",
        action="store_true",
        help="add runs although your own modules have changed since the recorded runs; the report notes it",
    )
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="add runs although the images have changed since the recorded runs; the report notes it",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="continue with the other runs after one raises an exception (default: stop)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="serve the report on this machine while the study runs; the address is printed",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="execution engine: worker processes on this machine, or tasks on a Ray cluster (default: local)",
    )
    parser.add_argument("--address", help="address of the Ray cluster (default: the cluster of this machine)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to train on (default: cpu)"
    )
    parser.add_argument(
        "--gpus-per-run",
        type=positive,
        metavar="X",
        help="GPUs per run with --engine ray --device cuda; 0.25 lets four runs share one (default: 1)",
    )

    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write the curves of every run for TensorBoard"
    )


def run(options: argparse.Namespace) -> int:
    """Execute the remaining runs, then print the report."""
    from cdgrad.study.records.run import FailedRun
    from cdgrad.study.report import preview
    from cdgrad.study.run.driver import run_study

    spec = specification(options.spec, options.rounding)
    check_graphs(spec, options.device)
    folder = Path(options.out or spec.out)
    engine, workers = _engine(options, folder), options.workers or spec.workers

    def first_screen(planned: Plan, recorded: list[Run]) -> None:
        seconds = preview.recorded_seconds(spec, recorded)
        # On a cluster the nodes may have the data, and with --keep-going other cells may have theirs.
        needs_data = options.engine == "local" and not options.keep_going
        plan.show(planned, recorded, workers, seconds, stderr=True, needs_data=needs_data)  # as all progress

    try:
        with _page(folder, options.serve):
            executed = run_study(
                spec,
                folder,
                workers,
                engine,
                first_screen,
                allow_code_change=options.allow_code_change,
                allow_data_change=options.allow_data_change,
                keep_going=options.keep_going,
            )
    except KeyboardInterrupt:
        return failed(
            130, f"interrupted; {folder} has the finished runs; run the same command to resume the study"
        )
    failures = [run for run in executed if run.status == "failed"]
    if executed and isinstance(executed[-1], FailedRun) and not options.keep_going:
        return failed(1, f"{_failure(folder, executed[-1])}; use --keep-going to execute the other runs")
    status = report.show(folder)
    if failures:
        count = f"{len(failures)} of {len(executed)} runs failed"
        return failed(1, f"{count}, the first: {_failure(folder, failures[0])}")
    return status


@contextmanager
def _page(folder: Path, serve: bool) -> Generator[None]:
    """Inside, the report is served on this machine, where that is asked for."""
    if not serve:
        yield
        return
    from cdgrad.study.report import live_page

    with live_page.served(folder) as address:
        print(f"report while the study runs: {address}", file=sys.stderr, flush=True)
        yield


def _failure(folder: Path, run: Run) -> str:
    from cdgrad.study.plan.job import run_name
    from cdgrad.study.records.run import FailedRun

    failure = f"{run_name(run)} failed: {run.message}"
    if isinstance(run, FailedRun):  # a worker that was killed leaves no traceback
        failure += f"; cdgrad log {folder} {run_name(run)} prints its traceback"
    return failure


def _engine(options: argparse.Namespace, folder: Path) -> Engine:
    on_gpu = options.device == "cuda"
    if options.gpus_per_run is not None and not on_gpu:
        raise UsageError("--gpus-per-run needs --device cuda")
    if options.engine == "ray" and options.tensorboard:
        raise UsageError("--tensorboard needs --engine local; tasks of a Ray cluster write no files")
    if options.engine == "ray":
        from cdgrad.study.run import ray_engine

        gpus = (options.gpus_per_run or 1.0) if on_gpu else 0.0
        return partial(ray_engine.run_all, address=options.address or "auto", gpus_per_run=gpus)
    for name in ("address", "gpus_per_run"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} needs --engine ray; local workers share the GPUs evenly")
    from cdgrad.study.files import CHECKPOINTS
    from cdgrad.study.run import local_engine

    gpus = local_engine.visible_gpus() if on_gpu else ()
    if options.tensorboard:
        from cdgrad.study.train.curves import check_installed

        check_installed()  # before the first run, which would fail
    return partial(
        local_engine.run_all,
        gpus=gpus,
        checkpoints=folder.absolute() / CHECKPOINTS,
        tensorboard=options.tensorboard and options.tensorboard.absolute(),
    )

"""The progress of a study on standard error: bars in a terminal, otherwise one line for each run."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cdgrad.study.plan.job import run_name
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.run import Run
from cdgrad.study.run.engine import EpochDone, RunDone
from cdgrad.study.shown import one_line
from cdgrad.study.spec import LoopSetting, Measure


class Display(Protocol):
    """Follows the events of a study."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...
    def epoch(self, event: EpochDone) -> None:
        """An epoch ended."""

    def run(self, event: RunDone) -> None:
        """A run ended."""


def display(plan: Plan, workers: int) -> Display:
    """Bars if stderr is a terminal, else lines."""
    return Bars(plan, workers) if sys.stderr.isatty() else Lines(plan)


class Bars:
    """One bar for the study with the time left, one for each worker with its run and epoch."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan, self._done = plan, plan.done
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=22),
            TextColumn("{task.fields[at]}"),
            _TimeLeft(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        # A run counts 1, and each epoch its share of it: cells may have different numbers of epochs.
        self._study = self._bars.add_task(
            f"[bold]{plan.spec.name}", total=plan.total, completed=self._done, at=self._at(), timed=True
        )
        self._workers = [self._bars.add_task("starting", total=1, at="", timed=False) for _ in range(workers)]
        self._under_way = dict.fromkeys(range(workers), 0.0)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def epoch(self, event: EpochDone) -> None:
        setting = event.job.setting
        # How many epochs the user's own training code has is not known in advance.
        epochs = setting.schedule.epochs if isinstance(setting, LoopSetting) else 0
        share = event.epoch / epochs if epochs else 0.5
        self._under_way[event.worker] = share
        self._bars.update(self._study, completed=self._done + sum(self._under_way.values()))
        self._bars.update(
            self._workers[event.worker],
            description=run_name(event.job),
            completed=share,
            at=f"epoch {event.epoch}/{epochs}" if epochs else f"epoch {event.epoch}",
        )

    def run(self, event: RunDone) -> None:
        self._done = max(self._done + 1, self._plan.done)  # trials may confirm recorded runs
        self._under_way[event.worker] = 0.0
        completed = self._done + sum(self._under_way.values())
        self._bars.update(self._study, total=self._plan.total, completed=completed, at=self._at())
        if event.run.status != "ok":
            self._bars.console.print(describe(event.run, self._plan.spec.measure), markup=False)

    def _at(self) -> str:
        return f"{self._done}/{_runs(self._plan)}"


class _TimeLeft(TimeRemainingColumn):
    """The time left, for the study as a whole."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left") if task.fields["timed"] else Text("")


class Lines:
    """A line for every finished run."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._done = plan, plan.done
        self._fresh, self._start = 0, time.monotonic()

    def __enter__(self) -> Lines:
        print(
            f"{self._plan.spec.name}: {_runs(self._plan)}, {self._done} of them finished",
            file=sys.stderr,
            flush=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def epoch(self, event: EpochDone) -> None:
        """Nothing: in a log, a line for each epoch would be too much."""

    def run(self, event: RunDone) -> None:
        self._done = max(self._done + 1, self._plan.done)  # trials may confirm recorded runs
        self._fresh += 1
        left = (time.monotonic() - self._start) / self._fresh * (self._plan.total - self._done)
        line = describe(event.run, self._plan.spec.measure)
        print(
            f"{self._done}/{self._plan.total} {line}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _runs(plan: Plan) -> str:
    """The number of runs, which may decrease where a study can end early."""
    limit = "at most " if plan.spec.until and plan.done < plan.total else ""
    return f"{limit}{plan.total} runs"


def describe(run: Run, measure: Measure) -> str:
    """A run in a line."""
    result = one_line(run.message) if run.error is None else measure.shown(run.error)
    status = "" if run.status == "ok" else f"{run.status}: "
    return f"{run_name(run)}: {status}{result} ({run.seconds:.1f} s)"

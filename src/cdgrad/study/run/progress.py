"""The progress of a study on standard error: bars in a terminal, otherwise one line for each run."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
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

    def remark(self, text: str) -> None:
        """Something that the user should know at once."""


def display(plan: Plan, workers: int) -> Display:
    """Bars if stderr is a terminal, else lines."""
    return Bars(plan, workers) if sys.stderr.isatty() else Lines(plan)


class Pace:
    """How much of a study is done, in runs and shares of runs, and the time that the rest takes at its pace.

    Attributes:
        runs: number of runs that are done.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self.runs = plan, plan.done
        self._start = time.monotonic()
        self._before = float(self.runs)  # what took no time here: recorded runs, and epochs of a checkpoint
        self._shares = dict[int, float]()  # by worker, of the run that it executes
        self._first = True  # no run has ended
        self._epochs = 0  # of the last run: how many the user's own training code has is not known before

    def epoch(self, event: EpochDone) -> tuple[float, int]:
        """The share of its run that a worker has executed, and how many epochs that run has; 0: not known."""
        setting = event.job.setting
        epochs = setting.schedule.epochs if isinstance(setting, LoopSetting) else self._epochs
        if event.worker not in self._shares and epochs:
            self._before += min(event.epoch - 1, epochs) / epochs  # of a run that was resumed
        self._shares[event.worker] = min(event.epoch / epochs, 1.0) if epochs else 0.0
        return self._shares[event.worker], epochs

    def run(self, event: RunDone) -> None:
        """A run ended."""
        if self._first:  # the time until it began is the start of a worker, which no later run needs
            self._start = max(self._start, time.monotonic() - event.run.seconds)
        self._first = False
        confirmed = max(0, self._plan.done - self.runs - 1)  # recorded runs that trials confirm
        self._before += confirmed
        self.runs += 1 + confirmed
        self._epochs = len(event.run.epochs) or self._epochs
        self._shares.pop(event.worker, None)

    @property
    def completed(self) -> float:
        """Runs that are done, and shares of those that are being executed."""
        return self.runs + sum(self._shares.values())

    @property
    def left(self) -> float | None:
        """Seconds until the end; None before anything was executed."""
        fresh = self.completed - self._before
        if fresh <= 0:
            return None
        return (time.monotonic() - self._start) / fresh * (self._plan.total - self.completed)


class Bars:
    """One bar for the study with the time left, one for each worker with its run and epoch."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan, self._pace = plan, Pace(plan)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=22),
            TextColumn("{task.fields[at]}"),
            _TimeLeft(self._pace),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        # A run counts 1, and each epoch its share of it: cells may have different numbers of epochs.
        self._study = self._bars.add_task(
            f"[bold]{plan.spec.name}", total=plan.total, completed=self._pace.runs, at=self._at(), timed=True
        )
        self._workers = [self._bars.add_task("starting", total=1, at="", timed=False) for _ in range(workers)]

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def epoch(self, event: EpochDone) -> None:
        share, epochs = self._pace.epoch(event)
        self._bars.update(self._study, completed=self._pace.completed)
        self._bars.update(
            self._workers[event.worker],
            description=run_name(event.job),
            completed=share if epochs else 0.5,
            at=f"epoch {event.epoch}/{epochs}" if epochs else f"epoch {event.epoch}",
        )

    def run(self, event: RunDone) -> None:
        self._pace.run(event)
        completed = self._pace.completed
        self._bars.update(self._study, total=self._plan.total, completed=completed, at=self._at())
        if event.run.status != "ok":
            self.remark(describe(event.run, self._plan.spec.measure))

    def remark(self, text: str) -> None:
        self._bars.console.print(text, markup=False)

    def _at(self) -> str:
        return f"{self._pace.runs}/{_runs(self._plan)}"


class _TimeLeft(ProgressColumn):
    """The time left, for the study as a whole; rich's own forgets all that is older than 30 s."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        if not task.fields["timed"]:
            return Text("")
        left = self._pace.left
        return Text("-:--:-- left" if left is None else f"{timedelta(seconds=round(left))} left")


class Lines:
    """A line for every finished run."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._pace = plan, Pace(plan)

    def __enter__(self) -> Lines:
        print(
            f"{self._plan.spec.name}: {_runs(self._plan)}, {self._pace.runs} of them finished",
            file=sys.stderr,
            flush=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def epoch(self, event: EpochDone) -> None:
        """No line: in a log, one for each epoch would be too much."""
        self._pace.epoch(event)

    def run(self, event: RunDone) -> None:
        self._pace.run(event)
        left = self._pace.left or 0.0
        line = describe(event.run, self._plan.spec.measure)
        print(
            f"{self._pace.runs}/{self._plan.total} {line}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def remark(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _runs(plan: Plan) -> str:
    """The number of runs, which may decrease where a study can end early."""
    limit = "at most " if plan.spec.until and plan.done < plan.total else ""
    return f"{limit}{plan.total} runs"


def describe(run: Run, measure: Measure) -> str:
    """A run in a line."""
    result = one_line(run.message) if run.error is None else measure.shown(run.error)
    status = "" if run.status == "ok" else f"{run.status}: "
    return f"{run_name(run)}: {status}{result} ({run.seconds:.1f} s)"

"""What a study shows while it runs: bars in a terminal, one line a run elsewhere. To stderr."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cdgrad.study.records import Run
from cdgrad.study.spec import Spec
from cdgrad.study.workers import EpochDone, RunDone


class Display(Protocol):
    """Follows the events of a study."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...
    def epoch(self, event: EpochDone) -> None:
        """An epoch ended."""

    def run(self, event: RunDone) -> None:
        """A run ended."""


def display(spec: Spec, done: int, workers: int) -> Display:
    """Bars if stderr is a terminal, else lines."""
    kind = Bars if sys.stderr.isatty() else Lines
    return kind(spec, done, workers)


class Bars:
    """One bar for the study with the time left, one for each worker with arm, seed and epoch."""

    def __init__(self, spec: Spec, done: int, workers: int) -> None:
        self._total, self._done = len(spec.arms) * len(spec.seeds), done
        self._epochs = spec.schedule.epochs
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=22),
            TextColumn("{task.fields[at]}"),
            _TimeLeft(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._study = self._bars.add_task(
            f"[bold]{spec.name}",
            total=self._total * self._epochs,
            completed=done * self._epochs,
            at=self._at(),
            timed=True,
        )
        self._workers = [
            self._bars.add_task("starting", total=self._epochs, at="", timed=False) for _ in range(workers)
        ]

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def epoch(self, event: EpochDone) -> None:
        self._bars.advance(self._study)
        self._bars.update(
            self._workers[event.worker],
            description=f"{event.job.arm}, seed {event.job.seed}",
            completed=event.epoch,
            at=f"epoch {event.epoch}/{self._epochs}",
        )

    def run(self, event: RunDone) -> None:
        self._done += 1
        missed = self._epochs - len(event.run.epochs)
        self._bars.advance(self._study, missed)
        self._bars.update(self._study, at=self._at())
        if event.run.status != "ok":
            self._bars.console.print(describe(event.run), markup=False)

    def _at(self) -> str:
        return f"{self._done}/{self._total} runs"


class _TimeLeft(TimeRemainingColumn):
    """The time left, for the study as a whole."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left") if task.fields["timed"] else Text("")


class Lines:
    """A line for every finished run."""

    def __init__(self, spec: Spec, done: int, workers: int) -> None:
        self._name, self._total, self._done = spec.name, len(spec.arms) * len(spec.seeds), done
        self._fresh, self._start = 0, time.monotonic()

    def __enter__(self) -> Lines:
        print(f"{self._name}: {self._total} runs, {self._done} of them done", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def epoch(self, event: EpochDone) -> None:
        """Nothing: a log wants no line an epoch."""

    def run(self, event: RunDone) -> None:
        self._done += 1
        self._fresh += 1
        left = (time.monotonic() - self._start) / self._fresh * (self._total - self._done)
        print(
            f"{self._done}/{self._total} {describe(event.run)}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def describe(run: Run) -> str:
    """A run in a line."""
    result = run.message if run.error is None else f"error {run.error:.2f} %"
    status = "" if run.status == "ok" else f"{run.status}: "
    return f"{run.arm}, seed {run.seed}: {status}{result} ({run.seconds:.1f} s)"

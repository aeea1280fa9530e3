"""The search for an arm's setting: its trials' errors, and which trial is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdgrad.study.records.run import Run
from cdgrad.study.spec.space import Values


def best(errors: Mapping[int, Sequence[float]]) -> int:
    """The trial with the lowest mean error over its seeds; of equal ones the first.

    An error that is not a number counts as the worst.
    """

    def mean(trial: int) -> float:
        value = math.fsum(errors[trial]) / len(errors[trial])
        return math.inf if math.isnan(value) else value

    return min(sorted(errors), key=mean)


@dataclass(frozen=True)
class Choice:
    """The result of the trials of an arm in a cell.

    Attributes:
        trial: the number of the best trial.
        values: its values, which the final runs use.
        errors: validation error in percent, by trial, one a tuning seed.
    """

    trial: int
    values: Values
    errors: Mapping[int, list[float]]


def ranked_error(run: Run) -> float:
    """The error by which trials are ranked; nan, the worst, for one that is missing."""
    return float("nan") if run.error is None else run.error


@dataclass(frozen=True)
class Search:
    """The trials of an arm in a cell, as far as they are finished.

    Attributes:
        values: what each trial tried.
        runs: its finished runs, by tuning seed.
        planned: number of runs that the whole search has.
        title: the arm, and where there are several searches of it the number of this one, from 1.
    """

    values: dict[int, Values]
    runs: dict[int, dict[int, Run]]
    planned: int
    title: str = ""

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return sum(map(len, self.runs.values()))

    @property
    def chosen(self) -> int | None:
        """The trial with the lowest mean validation error; None before all are made."""
        if self.finished < self.planned:
            return None
        return best(
            {trial: [ranked_error(run) for run in runs.values()] for trial, runs in self.runs.items()}
        )

    def errors(self, trial: int) -> list[float]:
        """The trial's validation errors in percent, in the order of its seeds."""
        return [error_of(run) for _, run in sorted(self.runs[trial].items())]

    def mean(self, trial: int) -> float:
        """Their mean."""
        errors = self.errors(trial)
        return math.fsum(errors) / len(errors)


def error_of(run: Run) -> float:
    """The run's error in percent. A diverged run counts as it was measured, and as 100 where it was not."""
    return run.error if run.error is not None and math.isfinite(run.error) else 100.0

"""The search for an arm's setting: its trials' errors, and which trial is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdgrad.study.records.run import Run
from cdgrad.study.spec.measure import ERROR, Measure
from cdgrad.study.spec.space import Values


def best_trial(results: Mapping[int, Sequence[float]], measure: Measure = ERROR) -> int:
    """The trial with the best mean result over its seeds, the lowest error; of equal ones the first.

    A result that is not a number counts as the worst.
    """

    def mean_cost(trial: int) -> float:
        return measure.cost(math.fsum(results[trial]) / len(results[trial]))

    return min(sorted(results), key=mean_cost)


@dataclass(frozen=True)
class Choice:
    """The result of the trials of an arm in a cell.

    Attributes:
        trial: the number of the best trial.
        values: its values, which the final runs use.
        errors: validation error in percent, or the study's other measure, by trial, one a tuning seed.
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
        measure: what the runs' results are.
    """

    values: dict[int, Values]
    runs: dict[int, dict[int, Run]]
    planned: int
    title: str = ""
    measure: Measure = ERROR

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return sum(map(len, self.runs.values()))

    @property
    def chosen(self) -> int | None:
        """The trial with the best mean validation result; None before all runs are finished."""
        if self.finished < self.planned:
            return None
        results = {trial: [ranked_error(run) for run in runs.values()] for trial, runs in self.runs.items()}
        return best_trial(results, self.measure)

    def errors(self, trial: int) -> list[float]:
        """The trial's validation errors, or other results, in the order of its seeds."""
        return [self.measure.value(run.error) for _, run in sorted(self.runs[trial].items())]

    def mean(self, trial: int) -> float:
        """The mean of the trial's validation errors, or other results, over its seeds."""
        errors = self.errors(trial)
        return math.fsum(errors) / len(errors)

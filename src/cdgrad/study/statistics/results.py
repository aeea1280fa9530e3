"""What was measured in a study: its records by cell, arm and seed, its trials, its comparisons.

All of it follows from the specification and the runs, wherever they were kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdgrad.study import StudyError
from cdgrad.study.plan.complete import complete_differences
from cdgrad.study.plan.search import Search, error_of
from cdgrad.study.records.run import Run
from cdgrad.study.records.store import Store
from cdgrad.study.spec import Spec, parse
from cdgrad.study.spec.space import Values
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.replicates import Replicated, compare_replicates
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p
from cdgrad.study.statistics.stopping import enough

Place = tuple[str, str]  # a cell and an arm


class SearchPlace(NamedTuple):
    """A cell, an arm, and the number of one of its independent searches, from 0."""

    cell: str
    arm: str
    replicate: int


class Compared(NamedTuple):
    """A comparison, and its p after Holm's correction over all tests of the study; nan where none is made."""

    comparison: paired.Comparison
    p: float


@dataclass(frozen=True)
class Results:
    """A study's records, sorted.

    Attributes:
        runs: every record, also of arms and seeds that the specification no longer has.
        finished: the final runs of its present cells, arms and seeds.
        searches: its trials, where it has any, by cell, arm and search.
        failed: runs of it that failed; they remain to be executed.
        earlier: former specifications of the study, the oldest first.
    """

    spec: Spec
    runs: list[Run]
    finished: dict[Place, dict[int, Run]]
    searches: dict[SearchPlace, Search]
    failed: list[Run]
    earlier: tuple[Spec, ...] = ()

    @staticmethod
    def of(spec: Spec, runs: Iterable[Run], earlier: Iterable[Spec] = ()) -> Results:
        """Sort the records `runs` by what `spec` says; their order does not matter.

        `earlier` are former specifications of the study, under which some of the runs were executed.
        """
        records = {run.key: run for run in runs}
        finished: dict[Place, dict[int, Run]] = {}
        searches: dict[SearchPlace, Search] = {}
        failed: list[Run] = []

        def of_key(cell: str, arm: str, trial: int | None, seeds: Iterable[int]) -> dict[int, Run]:
            found = [run for seed in seeds if (run := records.get((cell, arm, trial, seed)))]
            failed.extend(run for run in found if run.status == "failed")
            return {run.seed: run for run in found if run.status != "failed"}

        for cell in spec.cells:
            for arm, about in spec.arms.items():
                finished[cell, arm] = of_key(cell, arm, None, spec.seeds)
                if spec.tuning is None or about.tuning != "own":
                    continue
                for r in range(spec.tuning.replicates):
                    seeds, trials = spec.tuning.seeds_of(r), range(spec.tuning.trials)
                    made = {trial: of_key(cell, arm, trial, seeds) for trial in trials}
                    made = {trial: of_trial for trial, of_trial in made.items() if of_trial}
                    values: dict[int, Values] = {t: next(iter(rs.values())).values for t, rs in made.items()}
                    title = arm if spec.replicates == 1 else f"{arm}, search {r + 1}"
                    place = SearchPlace(cell, arm, r)
                    searches[place] = Search(values, made, len(trials) * len(seeds), title)
        return Results(spec, list(records.values()), finished, searches, failed, tuple(earlier))

    @property
    def final_runs(self) -> list[Run]:
        """The final runs of the study, failed ones at the end."""
        finished = [run for by_seed in self.finished.values() for run in by_seed.values()]
        return [*finished, *(run for run in self.failed if run.trial is None)]

    @property
    def trial_runs(self) -> list[Run]:
        """The runs of its trials, failed ones at the end."""
        searches = self.searches.values()
        finished = [run for search in searches for trial in search.runs.values() for run in trial.values()]
        return [*finished, *(run for run in self.failed if run.trial is not None)]

    @property
    def count(self) -> int:
        """Number of finished final runs."""
        return sum(map(len, self.finished.values()))

    @property
    def total(self) -> int:
        """Number of final runs in the study, without seeds that cells which may end early do not need."""
        return sum(
            len(runs) if cell in self.ended else len(self.spec.seeds)
            for (cell, _), runs in self.finished.items()
        )

    @cached_property
    def ended(self) -> set[str]:
        """Cells that need no more seeds, in a study with ``seeds = { until, most }``."""
        if not self.spec.until:
            return set()
        runs = {run.key: run for by_seed in self.finished.values() for run in by_seed.values()}
        spec = self.spec
        return {cell for cell in spec.cells if enough(spec, complete_differences(spec, cell, runs))}

    @property
    def trials_finished(self) -> int:
        """Number of finished runs of trials."""
        return sum(search.finished for search in self.searches.values())

    @property
    def trials_total(self) -> int:
        """Number of runs of trials in the study."""
        return sum(search.planned for search in self.searches.values())

    def errors(self, cell: str, arm: str) -> list[float]:
        """The errors of an arm's final runs in percent, in the order of the seeds."""
        return [error_of(run) for run in self.finished[cell, arm].values()]

    def values(self, cell: str, arm: str, replicate: int = 0) -> Values:
        """What a search chose for the final runs of an arm; empty where nothing was, or not yet."""
        finished = self.finished[cell, arm].items()
        made = (run for seed, run in finished if self.spec.replicate(seed) == replicate)
        first = next(made, None)
        return first.values if first else {}

    def pairs(self, cell: str, arm: str) -> tuple[list[int], list[float], list[float]]:
        """Seeds that the arm shares with the baseline, its errors, and the baseline's."""
        mine, base = self.finished[cell, arm], self.finished[cell, self.spec.baseline]
        seeds = [seed for seed in self.spec.seeds if seed in mine and seed in base]
        return seeds, [error_of(mine[s]) for s in seeds], [error_of(base[s]) for s in seeds]

    @cached_property
    def comparisons(self) -> dict[Place, Compared]:
        """Every other arm that shares a seed with the baseline in a cell.

        In a study with ``seeds = { until, most }``, whose number of seeds depends on what they showed,
        `interval` and `p` are the anytime-valid ones. In one with several searches for each arm's setting, a
        difference is the mean of a search, and `interval` and `p` are over the searches; nan until two of
        them have finished pairs. `correlation` and `win_rate` are always the seeds'.
        """
        found: dict[Place, paired.Comparison] = {}
        for cell, arm in self.finished:
            seeds, mine, base = self.pairs(cell, arm)
            if seeds and arm != self.spec.baseline:
                found[cell, arm] = self._compare((cell, arm), mine, base)
        floor = self.spec.rounding_arms
        adjusted = paired.holm([math.nan if arm in floor else c.p for (_, arm), c in found.items()])
        return {place: Compared(c, p) for (place, c), p in zip(found.items(), adjusted, strict=True)}

    def _compare(self, place: Place, mine: list[float], base: list[float]) -> paired.Comparison:
        found = paired.compare(mine, base)
        if self.spec.until:
            d = found.differences
            return replace(found, interval=anytime_interval(d), p=anytime_p(d))
        if self.spec.replicates == 1:
            return found
        # From here on the searches are what is independent, not the seeds.
        nothing, over = paired.Interval(math.nan, math.nan), self.replicated.get(place)
        means = over.means if over else np.array([found.mean])
        return replace(
            found,
            differences=means,
            mean=float(means.mean()),
            sd=paired.standard_deviation(means),
            interval=over.interval if over else nothing,
            bootstrap=nothing,
            median=float(np.median(means)),
            median_interval=paired.median_interval(means),
            p=over.p if over else math.nan,
        )

    @property
    def sampled(self) -> str:
        """What an independent difference belongs to: a seed, or a search with its seeds."""
        return "search" if self.spec.replicates > 1 else "seed"

    @cached_property
    def replicated(self) -> dict[Place, Replicated]:
        """The comparisons over independent searches, where a study has some and two of them share seeds."""
        found: dict[Place, Replicated] = {}
        for cell, arm in self.finished:
            groups = self._by_search(cell, arm)
            if self.spec.replicates > 1 and len(groups) > 1 and arm != self.spec.baseline:
                found[cell, arm] = compare_replicates(groups)
        return found

    def _by_search(self, cell: str, arm: str) -> list[list[float]]:
        """The paired differences of each search, of those that have any."""
        groups: dict[int, list[float]] = {}
        for seed, mine, base in zip(*self.pairs(cell, arm), strict=True):
            groups.setdefault(self.spec.replicate(seed), []).append(mine - base)
        return list(groups.values())

    @property
    def tested(self) -> int:
        """Number of comparisons that are tested: all but those of arms that only round otherwise."""
        return sum(arm not in self.spec.rounding_arms for _, arm in self.comparisons)

    def in_cell(self, cell: str) -> dict[str, Compared]:
        """The comparisons of a cell, by arm."""
        return {arm: compared for (c, arm), compared in self.comparisons.items() if c == cell}


def _parsed(specs: Iterable[tuple[str, str]]) -> Iterator[Spec]:
    """The specifications that this version still reads."""
    for name, text in specs:
        with suppress(StudyError):
            yield parse(text, name)


def read(folder: Path) -> Results:
    """The results in a study's folder.

    Raises:
        StudyError: no study there, or nothing finished yet.
    """
    with Store(folder, write=False) as store:
        name, text = store.spec()
        runs = store.runs()
        former = store.earlier_specs()
    results = Results.of(parse(text, name), runs, _parsed(former))
    if not results.count + results.trials_finished:
        failed = results.failed
        why = f", {len(failed)} failed: {failed[0].message}" if failed else ""
        raise StudyError(f"{folder} has no finished run yet{why}")
    return results

"""What was measured in a study: its records by cell, arm and seed, its trials, its comparisons.

All of it follows from the specification and the runs, wherever they were kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdgrad.study import StudyError
from cdgrad.study.plan.complete import complete_differences
from cdgrad.study.plan.job import run_name
from cdgrad.study.plan.search import Search
from cdgrad.study.records.run import Key, Run
from cdgrad.study.records.store import Store
from cdgrad.study.spec import Spec, parse
from cdgrad.study.spec.space import Values
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.replicates import Replicated, compare_replicates
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p
from cdgrad.study.statistics.stopping import enough

Place = tuple[str, str]  # a cell, and an arm or the name of a comparison


class SearchPlace(NamedTuple):
    """A cell, an arm, and the number of one of its independent searches, from 0."""

    cell: str
    arm: str
    replicate: int


class Compared(NamedTuple):
    """A comparison, and its p after Holm's correction for all planned tests; nan where none is made."""

    comparison: paired.Comparison
    p: float


def _has_chosen_values(run: Run, search: Search | None) -> bool:
    """False for a final run that a search of fewer trials led to: it remains, with other values."""
    chosen = None if search is None else search.chosen
    return search is None or chosen is None or run.values == search.values[chosen]


@dataclass(frozen=True)
class Results:
    """A study's records, sorted.

    Attributes:
        runs: every record, also of arms and seeds that the specification no longer has.
        finished: the final runs of its present cells, arms and seeds.
        searches: its trials, where it has any, by cell, arm and search.
        failed: runs of it that failed; they remain to be executed.
        earlier: former specifications of the study, the oldest first.
        unreadable: number of former specifications that this version cannot read.
        planned: the specification itself, where `compared_with` asked for other comparisons.
    """

    spec: Spec
    runs: list[Run]
    finished: dict[Place, dict[int, Run]]
    searches: dict[SearchPlace, Search]
    failed: list[Run]
    earlier: tuple[Spec, ...] = ()
    unreadable: int = 0
    planned: Spec | None = None

    @staticmethod
    def of(spec: Spec, runs: Iterable[Run], earlier: Iterable[Spec] = ()) -> Results:
        """Sort the records `runs` by what `spec` says; their order does not matter.

        `earlier` are former specifications of the study, under which some of the runs were executed.

        Raises:
            StudyError: a run is recorded twice, so that its result would depend on their order.
        """
        records: dict[Key, Run] = {}
        for run in runs:
            if records.setdefault(run.key, run) is not run:
                raise StudyError(f"{spec.name}: {run_name(run)} is recorded twice; leave one record of it")
        finished: dict[Place, dict[int, Run]] = {}
        searches: dict[SearchPlace, Search] = {}
        failed: list[Run] = []

        def runs_by_seed(cell: str, arm: str, trial: int | None, seeds: Iterable[int]) -> dict[int, Run]:
            recorded = [run for seed in seeds if (run := records.get((cell, arm, trial, seed)))]
            failed.extend(run for run in recorded if run.status == "failed")
            return {run.seed: run for run in recorded if run.status != "failed"}

        for cell in spec.cells:
            for arm, options in spec.arms.items():
                finished[cell, arm] = runs_by_seed(cell, arm, None, spec.seeds)
                if spec.tuning is None or options.tuning != "own":
                    continue
                for r in range(spec.tuning.replicates):
                    seeds, numbers = spec.tuning.seeds_of(r), range(spec.tuning.trials)
                    every = {trial: runs_by_seed(cell, arm, trial, seeds) for trial in numbers}
                    trials = {trial: by_seed for trial, by_seed in every.items() if by_seed}
                    values: dict[int, Values] = {
                        trial: next(iter(by_seed.values())).values for trial, by_seed in trials.items()
                    }
                    title = arm if spec.replicates == 1 else f"{arm}, search {r + 1}"
                    planned, place = len(numbers) * len(seeds), SearchPlace(cell, arm, r)
                    searches[place] = Search(values, trials, planned, title, spec.measure)
        for (cell, arm), by_seed in finished.items():
            searched = spec.baseline if spec.arms[arm].tuning == "baseline" else arm
            finished[cell, arm] = {
                seed: run
                for seed, run in by_seed.items()
                if _has_chosen_values(run, searches.get(SearchPlace(cell, searched, run.replicate)))
            }
        return Results(spec, list(records.values()), finished, searches, failed, tuple(earlier))

    @cached_property
    def completed(self) -> list[Run]:
        """The records `runs` without those of failed runs."""
        return [run for run in self.runs if run.status != "failed"]

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

    def runs_in(self, cell: str) -> list[Run]:
        """The finished final runs of a cell, arm by arm."""
        return [run for (c, _), by_seed in self.finished.items() if c == cell for run in by_seed.values()]

    def errors(self, cell: str, arm: str) -> list[float]:
        """The errors in percent of an arm's final runs, or their other results, in the order of the seeds."""
        return [self.spec.measure.value(run.error) for run in self.finished[cell, arm].values()]

    def mean_interval(self, cell: str, arm: str) -> paired.Interval:
        """Of the mean of `errors`, by Student's t; of percentages the part from 0 to 100.

        The true mean lies there, so that the part covers it exactly where the whole interval does.
        """
        low, high = paired.mean_interval(self.errors(cell, arm))
        if self.spec.measure.percent and not math.isnan(low):
            return paired.Interval(max(low, 0.0), min(high, 100.0))
        return paired.Interval(low, high)

    def values(self, cell: str, arm: str, replicate: int = 0) -> Values:
        """What a search chose for the final runs of an arm; empty where nothing was, or not yet."""
        finished = self.finished[cell, arm].items()
        runs = (run for seed, run in finished if self.spec.replicate(seed) == replicate)
        first = next(runs, None)
        return first.values if first else {}

    def paired_runs(self, cell: str, name: str) -> list[tuple[Run, Run]]:
        """The final runs of a comparison, the arm's and the reference's, of each seed that both have.

        `name` is one of ``spec.contrasts``: the arm's, unless all pairs of arms are compared.
        """
        contrast = self.spec.contrasts[name]
        of_arm, of_reference = self.finished[cell, contrast.arm], self.finished[cell, contrast.reference]
        both = [seed for seed in self.spec.seeds if seed in of_arm and seed in of_reference]
        return [(of_arm[seed], of_reference[seed]) for seed in both]

    def pairs(self, cell: str, name: str) -> tuple[list[int], list[float], list[float]]:
        """Seeds that the arm of a comparison shares with its reference, its results, and the reference's."""
        value, runs = self.spec.measure.value, self.paired_runs(cell, name)
        return (
            [run.seed for run, _ in runs],
            [value(run.error) for run, _ in runs],
            [value(run.error) for _, run in runs],
        )

    @cached_property
    def comparisons(self) -> dict[Place, Compared]:
        """All comparisons with a seed, by cell and name, which is the arm's where the reference is one arm.

        In a study with ``seeds = { until, most }``, whose number of seeds depends on what they showed,
        `interval` and `p` are the anytime-valid ones. In one with several searches for each arm's setting, a
        difference is the mean of a search, and `interval` and `p` are over the searches; nan until two of
        them have finished pairs. `correlation` and `win_rate` are always the seeds'.
        """
        compared: dict[Place, paired.Comparison] = {}
        for cell, name in product(self.spec.cells, self.spec.contrasts):
            seeds, of_arm, of_reference = self.pairs(cell, name)
            if seeds:
                compared[cell, name] = self._compare((cell, name), of_arm, of_reference)
        tested = self.spec.tested_contrasts
        p_values = [c.p if name in tested else math.nan for (_, name), c in compared.items()]
        adjusted = paired.holm(p_values, self.spec.tests)
        return {place: Compared(c, p) for (place, c), p in zip(compared.items(), adjusted, strict=True)}

    def _compare(self, place: Place, of_arm: list[float], of_reference: list[float]) -> paired.Comparison:
        larger = self.spec.measure.direction == "max"
        comparison = paired.compare(of_arm, of_reference, larger_is_better=larger)
        if self.spec.until:
            d = comparison.differences
            return replace(comparison, interval=anytime_interval(d), p=anytime_p(d))
        if self.spec.replicates == 1:
            return comparison
        # From here on the searches are what is independent, not the seeds.
        nothing, over = paired.Interval(math.nan, math.nan), self.replicated.get(place)
        means = over.means if over else np.array([comparison.mean])
        return replace(
            comparison,
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
        """What an independent difference belongs to, a seed or a search with its seeds."""
        return "search" if self.spec.replicates > 1 else "seed"

    @cached_property
    def replicated(self) -> dict[Place, Replicated]:
        """The comparisons over independent searches, where a study has some and two of them share seeds."""
        compared: dict[Place, Replicated] = {}
        for cell, name in product(self.spec.cells, self.spec.contrasts):
            groups = self._by_search(cell, name)
            if self.spec.replicates > 1 and len(groups) > 1:
                compared[cell, name] = compare_replicates(groups)
        return compared

    def _by_search(self, cell: str, name: str) -> list[list[float]]:
        """The paired differences of each search, of those that have any."""
        groups: dict[int, list[float]] = {}
        seeds, of_arm, of_reference = self.pairs(cell, name)
        differences = paired.differences_of(of_arm, of_reference) if seeds else ()
        for seed, difference in zip(seeds, differences, strict=True):
            groups.setdefault(self.spec.replicate(seed), []).append(float(difference))
        return list(groups.values())

    def in_cell(self, cell: str) -> dict[str, Compared]:
        """The comparisons of a cell, by name: the arm's, unless all pairs of arms are compared."""
        return {name: compared for (c, name), compared in self.comparisons.items() if c == cell}

    def compared_with(self, reference: str, *, all_pairs: bool = False) -> Results:
        """The same records, with other comparisons than the specification's.

        Args:
            reference: the arm that all others are compared with; empty: as the specification says.
            all_pairs: compare every two arms.

        Raises:
            StudyError: there is no such arm, or the number of seeds followed from the comparisons.
        """
        spec = self.spec
        if not reference and not all_pairs:
            return self
        if reference and reference not in spec.arms:
            raise StudyError(f"{spec.name} has no arm {reference!r}; it has {', '.join(spec.arms)}")
        if spec.until and (reference or all_pairs):
            raise StudyError(
                f"{spec.name}: seeds = {{ until }} ended its cells by the comparisons of the specification; "
                "write reference or all_pairs there"
            )
        changes = {"reference": reference or spec.reference, "all_pairs": all_pairs or spec.all_pairs}
        return replace(self, spec=replace(spec, **changes), planned=self.planned or spec)


def _parsed(specs: Iterable[tuple[str, str]]) -> list[Spec]:
    """The specifications that this version still reads."""
    readable: list[Spec] = []
    for name, text in specs:
        with suppress(StudyError):
            readable.append(parse(text, name, stored=True))
    return readable


def read(folder: Path) -> Results:
    """The results in a study's folder.

    Raises:
        StudyError: no study there, or nothing finished yet.
    """
    with Store(folder, write=False) as store:
        name, text = store.spec()
        runs = store.runs()
        former = store.earlier_specs()
    earlier = _parsed(former)
    spec = parse(text, name, stored=True)
    results = replace(Results.of(spec, runs, earlier), unreadable=len(former) - len(earlier))
    if not results.count + results.trials_finished:
        failed = results.failed
        why = f", {len(failed)} failed: {failed[0].message}" if failed else ""
        raise StudyError(f"{folder} has no finished run yet{why}")
    return results

"""The tables of a report that are about tuning: what was tried and chosen, and what searches differ by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cdgrad.study.plan.search import Search
from cdgrad.study.report.document import Table
from cdgrad.study.report.tables import difference_title, one_value, row_name, values
from cdgrad.study.report.words import words
from cdgrad.study.spec import Dimension, Spec
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results


def replicates(results: Results, cell: str) -> Table:
    """An arm a row: the mean difference of each search, and the SDs of searches and seeds."""
    w = words(results)
    title = difference_title(results.spec, w).partition(":")[0]
    return Table(
        f"Independent searches: {title[0].lower()}{title[1:]}",
        (row_name(results), "of each search", "SD, tuning", "SD, seed", "95 % as if one search"),
        [
            (
                name,
                ", ".join(w.number(mean, "+") for mean in r.means),
                w.number(r.tuning_sd),
                w.number(r.seed_sd),
                w.interval(r.one_search, "+"),
            )
            for (c, name), r in results.replicated.items()
            if c == cell
        ],
        "SD: standard deviations by analysis of variance, of the searches and of a seed within a search; the "
        "last column is the interval without the noise of tuning, which a single search would report",
        align="lprrr",
    )


def tuning(results: Results) -> Table:
    """An arm in a cell a row: its trials, what was chosen and how good that is on validation data."""
    spec, w = results.spec, words(results)
    name, best = spec.measure.name, "lowest" if spec.measure.direction == "min" else "highest"
    several = len(spec.cells) > 1
    rows: list[Sequence[str]] = []
    for cell, arm in results.finished:
        shown = [cell if arm == next(iter(spec.arms)) else ""] if several else []
        searches = [s for place, s in results.searches.items() if place[:2] == (cell, arm)]
        if not searches:
            borrowed = spec.arms[arm].tuning == "baseline"
            chosen = f"as for {spec.baseline}" if borrowed else "not tuned"
            rows.append((*shown, arm, "0", "0", "-", chosen))
        for search in searches:
            mean, chosen = "-", f"not yet: {search.finished} of {search.planned} runs"
            if search.chosen is not None:
                mean, chosen = w.number(search.mean(search.chosen)), values(search.values[search.chosen])
            rows.append((*shown, search.title, str(len(search.runs)), str(search.finished), mean, chosen))
    return Table(
        f"What was chosen, by the {best} mean {name} on validation {w.data}",
        (*(["cell"] if several else []), "arm", "trials", "runs", name, "chosen"),
        rows,
        f"every trial is run on {_tuning_seeds(spec)}, which no final run uses; {name}: mean validation "
        f"{name} of the chosen trial{w.in_unit.replace(',', '')}, optimistic because the trial was chosen by "
        "it",
        align="l" * several + "lrrrp",
        grouped=several,
    )


def _tuning_seeds(spec: Spec) -> str:
    """The seeds of the trials, in words."""
    if spec.tuning is None:
        return "no seed"
    of_each = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        for seeds in (spec.tuning.seeds_of(r) for r in range(spec.replicates))
    ]
    if len(of_each) == 1:
        return of_each[0]
    return "; ".join(f"{seeds} in search {r}" for r, seeds in enumerate(of_each, 1))


def trials(results: Results, search: Search, cell: str) -> Table:
    """A trial a row, the best first."""
    w, measure = words(results), results.spec.measure
    order = sorted(search.runs, key=lambda trial: measure.cost(search.mean(trial)))
    keys = sorted(search.values[order[0]]) if order else []
    rows = [
        (
            f"{trial}{' *' if trial == search.chosen else ''}",
            w.number(search.mean(trial)),
            w.number(paired.standard_deviation(search.errors(trial))),
            str(sum(run.status == "diverged" for run in search.runs[trial].values())),
            *(one_value(search.values[trial].get(key)) for key in keys),
        )
        for trial in order
    ]
    return Table(
        f"Trials of {search.title}" + (f", {cell}" if cell else ""),
        ("trial", measure.name, "SD", "diverged", *keys),
        rows,
        f"mean validation {measure.name}{w.in_unit.replace(',', '')}, best first; * chosen",
        align="r" * (4 + len(keys)),
    )


def search_space(spec: Spec) -> Iterator[Table]:
    """For each arm and key: the range that is searched, or what fixes the value."""
    if spec.tuning is None:
        return
    rows: list[Sequence[str]] = []
    for arm, options in spec.arms.items():
        if options.tuning == "own":
            points = [p for r in range(spec.replicates) for p in spec.tuning.points(arm, r)]
            rows += [
                (arm, key, _range(dimension), _tried([point[key] for point in points]))
                for key, dimension in spec.tuning.of(arm).items()
            ]
        elif options.tuning == "baseline":
            keys = ", ".join(spec.tuning.of(spec.baseline))
            rows.append((arm, keys, f"pinned by the choice for {spec.baseline}", "-"))
        else:
            keys = ", ".join((*options.optimizer, *options.values)) or "all"
            rows.append((arm, keys, "pinned by the specification", "-"))
    yield Table(
        "What is searched, and what is pinned",
        ("arm", "key", "range", "tried"),
        rows,
        "tried: smallest and largest value of the trials, which are known beforehand",
        align="lppr",
    )


def _range(dimension: Dimension) -> str:
    return f"{dimension}{', logarithmic' if dimension.log else ''}"


def _tried(values: Sequence[Any]) -> str:
    if any(isinstance(value, str | bool) for value in values):
        return f"{len(set(values))} choices"
    return f"{min(values):.3g} to {max(values):.3g}"

"""The tables of a report that are about tuning: what was tried and chosen, and what searches differ by."""

from __future__ import annotations

from collections.abc import Sequence

from cdgrad.study.plan.search import Search
from cdgrad.study.report.document import Table
from cdgrad.study.report.tables import in_cell, interval_text, number, value_text, values
from cdgrad.study.spec import Spec
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results


def replicates(results: Results, cell: str) -> Table:
    """An arm a row: the mean difference of each search, and what searches and seeds add to its spread."""
    found = {arm: r for (c, arm), r in results.replicated.items() if c == cell}
    return Table(
        f"Independent searches: paired difference to {results.spec.baseline}, in points",
        ("arm", "of each search", "SD, tuning", "SD, seed", "95 % as if one search"),
        [
            (
                arm,
                ", ".join(number(mean, "+") for mean in r.means),
                number(r.tuning_sd),
                number(r.seed_sd),
                interval_text(r.one_search, "+"),
            )
            for arm, r in found.items()
        ],
        "SD: standard deviations by analysis of variance, of the searches and of a seed within a search; the "
        "last column is the interval without the noise of tuning, which a single search would report",
        align="lprrr",
    )


def tuning(results: Results) -> Table:
    """An arm in a cell a row: its trials, what was chosen and how good that is on validation images."""
    spec = results.spec
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
                mean, chosen = number(search.mean(search.chosen)), values(search.values[search.chosen])
            rows.append((*shown, search.title, str(len(search.runs)), str(search.finished), mean, chosen))
    return Table(
        "What was chosen, by the lowest mean error on validation images",
        (*(["cell"] if several else []), "arm", "trials", "runs", "error", "chosen"),
        rows,
        f"every trial is run on {_tuning_seeds(spec)}, which no final run uses; error: mean "
        "validation error of the chosen trial in percent, optimistic because the trial was chosen by it",
        align="l" * several + "lrrrp",
        grouped=several,
    )


def _tuning_seeds(spec: Spec) -> str:
    """The seeds of the trials, in words."""
    if spec.tuning is None:
        return "no seed"
    of_each = [", ".join(map(str, spec.tuning.seeds_of(r))) for r in range(spec.replicates)]
    if len(of_each) == 1:
        return f"seed {of_each[0]}"
    return "; ".join(f"seed {seeds} in search {r}" for r, seeds in enumerate(of_each, 1))


def trials(search: Search, cell: str) -> Table:
    """A trial a row, the best first."""
    order = sorted(search.runs, key=search.mean)
    keys = sorted(search.values[order[0]]) if order else []
    rows = [
        (
            f"{trial}{' *' if trial == search.chosen else ''}",
            number(search.mean(trial)),
            number(paired.standard_deviation(search.errors(trial))),
            str(sum(run.status == "diverged" for run in search.runs[trial].values())),
            *(value_text(search.values[trial].get(key)) for key in keys),
        )
        for trial in order
    ]
    return Table(
        f"Trials of {search.title}" + in_cell(cell),
        ("trial", "error", "SD", "diverged", *keys),
        rows,
        "mean validation error in percent, best first; * chosen",
        align="r" * (4 + len(keys)),
    )

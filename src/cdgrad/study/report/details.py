"""The tables of a study's runs: seed by seed, and what they were evaluated on."""

from __future__ import annotations

from collections.abc import Sequence

from cdgrad.study.report.document import Table
from cdgrad.study.report.words import words
from cdgrad.study.statistics.results import Results


def evaluated_splits(results: Results) -> Table:
    """How many runs were evaluated on each split: the evidence that trials read no test data."""
    data = words(results).data
    rows: list[Sequence[str]] = []
    for name, is_trial in (("final runs", False), ("trials", True)):
        runs = [run for run in results.runs if (run.trial is not None) is is_trial]
        evaluated = [run.evaluated for run in runs if run.status != "failed"]
        failed = sum(run.status == "failed" for run in runs)
        rows.append((name, *(str(evaluated.count(split)) for split in ("test", "validation")), str(failed)))
    return Table(
        "What the recorded runs were evaluated on",
        ("runs", f"test {data}", f"validation {data}", "failed"),
        rows,
        "all records in the study's folder, including those of former arms and seeds; the store refuses a "
        f"trial that was evaluated on test {data}",
        align="lrrr",
    )


def seeds(results: Results, cell: str) -> Table:
    """A seed a row: every arm's result."""
    spec, w = results.spec, words(results)

    def shown(arm: str, seed: int) -> str:
        run = results.finished[cell, arm].get(seed)
        if run is None:
            return "-"
        return w.number(spec.measure.value(run.error)) + " *" * (run.status == "diverged")

    rows = [
        (str(seed), *(shown(arm, seed) for arm in spec.arms))
        for seed in spec.seeds
        if any(seed in results.finished[cell, arm] for arm in spec.arms)
    ]
    return Table(
        f"Every seed's {spec.measure.name} on the {spec.evaluate} {w.data}{w.in_unit}{cell and ', ' + cell}",
        ("seed", *spec.arms),
        rows,
        "* diverged",
        align="r" * (1 + len(spec.arms)),
    )

"""The tables about the runs themselves: seed by seed, what they were evaluated on, their time and size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cdgrad.study.report.document import Table
from cdgrad.study.report.words import enumerated, words
from cdgrad.study.statistics.paired import standard_deviation
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


def cost(results: Results) -> Table:
    """An arm a row: its runs, how many diverged, and the time that they took."""
    rows: list[Sequence[str]] = []
    for arm in results.spec.arms:
        runs = [run for run in results.completed if run.arm == arm]
        trials = [run for run in runs if run.trial is not None]
        diverged = [sum(run.status == "diverged" for run in group) for group in (runs, trials)]
        seconds = [run.seconds for run in runs]
        mean = f"{math.fsum(seconds) / len(runs):.1f}" if runs else "-"
        sd = f"{standard_deviation(seconds):.1f}" if len(runs) > 1 else "-"
        final = len(runs) - len(trials)
        counts = (final, diverged[0] - diverged[1], len(trials), diverged[1])
        rows.append((arm, *map(str, counts), mean, sd, f"{math.fsum(seconds):.0f}"))
    return Table(
        "Time that the runs of each arm took",
        ("arm", "final runs", "diverged", "trials", "diverged trials", "s per run", "SD", "s in all"),
        rows,
        "all recorded runs; wall time in seconds, while other runs were executed in parallel",
        align="lrrrrrrr",
    )


def resources(results: Results) -> Table:
    """An arm a row: the dates and backends of its runs, and their sizes."""
    rows: list[Sequence[str]] = []
    for arm in results.spec.arms:
        runs = [run for run in results.completed if run.arm == arm]
        days = sorted({run.started[:10] for run in runs})
        backends = sorted({run.environment["backend"] for run in runs if "backend" in run.environment})
        memory = [run.memory / 2**20 for run in runs if run.memory is not None]
        rows.append(
            (
                arm,
                " to ".join(days if len(days) < 3 else (days[0], days[-1])) or "-",
                ", ".join(backends) or "-",
                _range([run.parameters for run in runs if run.parameters is not None]),
                _range([run.images for run in runs if run.images is not None]),
                f"{max(memory):,.0f}" if memory else "-",
            )
        )
    known = [k for k in range(len(_RESOURCES)) if k < 2 or any(row[k] != "-" for row in rows)]
    title = enumerated([_RESOURCES[k][0] for k in known[1:]])
    notes = [_RESOURCES[k][2] for k in known if _RESOURCES[k][2]]
    return Table(
        f"{title[0].upper()}{title[1:]} of the runs of each arm",
        [_RESOURCES[k][0] for k in known],
        [tuple(row[k] for k in known) for row in rows],
        "; ".join(["all recorded runs", *notes]),
        align="".join(_RESOURCES[k][1] for k in known),
    )


# Title, alignment and meaning of each column; one that no run has a value for is left out.
_RESOURCES = (
    ("arm", "l", ""),
    ("date", "l", ""),
    ("backend", "l", "backend: what computed the operator"),
    ("parameters", "r", "parameters of the network"),
    ("images", "r", "images: training images seen in a run"),
    ("GPU MiB", "r", "GPU MiB: peak memory of a run's tensors, not measured on a CPU"),
)


def _range(values: Sequence[int]) -> str:
    """The value, or the least and the greatest of several; a dash for none."""
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)})) if values else "-"

"""The tables of a report that say what the runs took, and with what they were made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cdgrad.study.report.document import Table
from cdgrad.study.statistics.results import Results


def cost(results: Results) -> Table:
    """An arm a row: its runs, how many diverged, and the time that they took."""
    rows: list[Sequence[str]] = []
    for arm in results.spec.arms:
        runs = [run for run in results.runs if run.arm == arm and run.status != "failed"]
        trials = [run for run in runs if run.trial is not None]
        diverged = [sum(run.status == "diverged" for run in some) for some in (runs, trials)]
        total = math.fsum(run.seconds for run in runs)
        mean = f"{total / len(runs):.1f}" if runs else "-"
        final = len(runs) - len(trials)
        counts = (final, diverged[0] - diverged[1], len(trials), diverged[1])
        rows.append((arm, *map(str, counts), mean, f"{total:.0f}"))
    return Table(
        "What the runs of each arm took",
        ("arm", "final runs", "diverged", "trials", "diverged trials", "s per run", "s in all"),
        rows,
        "all recorded runs; seconds of wall time, of a run beside the others that ran at once",
        align="lrrrrrr",
    )


def resources(results: Results) -> Table:
    """An arm a row: when its runs were made, and with what."""
    rows: list[Sequence[str]] = []
    for arm in results.spec.arms:
        runs = [run for run in results.runs if run.arm == arm and run.status != "failed"]
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
    return Table(
        "When and with what the runs of each arm were made",
        ("arm", "date", "backend", "parameters", "images", "GPU MiB"),
        rows,
        "all recorded runs; backend: what computed the operator; parameters of the network; images: training "
        "images that a run saw; GPU MiB: the most that the tensors of a run took, not measured on a CPU",
        align="lllrrr",
    )


def _range(values: Sequence[int]) -> str:
    """The value, or the least and the greatest of several; a dash for none."""
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)})) if values else "-"

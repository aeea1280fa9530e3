"""When the runs were executed, and when they reached a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cdgrad.study.records.run import Run
from cdgrad.study.report.document import Table
from cdgrad.study.report.figures.curves import curve_key
from cdgrad.study.report.tables import mean
from cdgrad.study.report.words import duration
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results


def dates(results: Results) -> list[str]:
    """When the study ran, and how long in all."""
    runs = [run for run in results.completed if run.started]
    if not runs:
        return []
    first, last = min(run.started for run in runs)[:10], max(run.started for run in runs)[:10]
    when = first if first == last else f"{first} to {last}"
    total = duration(math.fsum(run.seconds for run in runs))
    return [f"date: {when} (UTC)", f"time: {total} in all, of {len(runs)} runs"]


def time_to_target(results: Results, cell: str, target: float) -> Table | None:
    """An arm or pair a row: how many runs reached `target`, and when; None where no epoch measured it."""
    spec, key = results.spec, curve_key(results, cell)
    if key is None:
        return None
    reached = {
        arm: {seed: _first_epoch(run, key, target, spec.measure.sign) for seed, run in by_seed.items()}
        for (c, arm), by_seed in results.finished.items()
        if c == cell
    }
    rows: list[Sequence[str]] = []
    for arm, by_seed in reached.items():
        epochs = [epoch for epoch in by_seed.values() if epoch]
        seconds = [_seconds(results.finished[cell, arm][seed], e) for seed, e in by_seed.items() if e]
        medians = [f"{np.median(epochs):g}", f"{np.median(seconds):.1f}"] if epochs else ["-", "-"]
        rows.append((arm, f"{len(epochs)} of {len(by_seed)}", *medians, *_paired(results, arm, reached)))
    what = key.replace("_", " ")
    unit = " %" if spec.measure.percent else f" {spec.measure.unit}".rstrip()
    return Table(
        f"Time to a {what} of {target:g}{unit}" + (f", {cell}" if cell else ""),
        ("arm", "reached", "epochs", "s", "difference", "95 % t", "pairs"),
        rows,
        "reached: runs with such an epoch; epochs and s: medians of those, s from the time of a run, "
        f"divided evenly among its epochs; difference: of the epochs, paired, to {spec.reference_arm}, "
        "of the seeds on which both reached it. Runs that never do are left out: compare the shares first",
        align="lrrrrrr",
    )


def _paired(results: Results, arm: str, reached: dict[str, dict[int, int | None]]) -> list[str]:
    """The mean difference in epochs to the reference, its interval and the number of pairs."""
    reference = results.spec.reference_arm
    both = [
        own - of_reference
        for seed, own in reached[arm].items()
        if own and (of_reference := reached[reference].get(seed)) and arm != reference
    ]
    if not both:
        return ["-", "-", "-" if arm == reference else "0"]
    low, high = paired.mean_interval(both)
    return [f"{mean(both):+.1f}", "-" if math.isnan(low) else f"{low:+.1f} to {high:+.1f}", str(len(both))]


def _first_epoch(run: Run, key: str, target: float, sign: float) -> int | None:
    """The first epoch, from 1, whose value is at least as good as `target`."""
    values = ((epoch, measured.get(key, math.nan)) for epoch, measured in enumerate(run.epochs, 1))
    return next((epoch for epoch, value in values if sign * value <= sign * target), None)


def _seconds(run: Run, epoch: int) -> float:
    return run.seconds * epoch / len(run.epochs)

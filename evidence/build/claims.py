"""The main section: three metrics, tuned, over networks and optimizers; and what the learning rate does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cdgrad.metrics import ReweightedL2, Sobolev
from cdgrad.study.report.figures.drawing import Drawing
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import figures, tables
from evidence.build.loading import CLAIMS, RATES, Row, average, baselines, rows, studies

METHODS = {"reweighted": "re-weighted", "sobolev": "Sobolev", "mean-sobolev": "mean-weighted Sobolev"}
STRENGTHS = ("reweighted", "sobolev")  # some lam is the ordinary gradient: compared at equal rates
FIXED = {"reweighted-fixed": "re-weighted, lam = 3", "sobolev-fixed": "Sobolev, lam = 0.01"}


def section() -> tuple[dict[str, str], list[Drawing]]:
    """Three metrics over networks and optimizers; and what the learning rate has to do with it."""
    results = studies(CLAIMS)
    table, base = rows(results, METHODS), baselines(results)
    averages = {arm: average(table, arm) for arm in METHODS}
    controls = at_equal_rates([row for row in table if row.arm in STRENGTHS])
    _still_says_no(averages.values(), controls)
    fixed = rows(results, FIXED)
    spec, budgets = results[0].spec, [study.spec.tuning for study in results if study.spec.tuning]
    parts = {
        "claims_cells": str(len(base)),
        "tuned_count": str(len(table)),
        "tuned_better": str(sum(row.better for row in table)),
        "tuned_worse": str(sum(row.worse for row in table)),
        "mean_cells": str(sum(row.arm == "mean-sobolev" for row in table)),
        "claims_seeds": str(len(spec.seeds)),
        "claims_trials": " or ".join(str(t) for t in sorted({budget.trials for budget in budgets})),
        "claims_trial_seeds": " or ".join(str(t) for t in sorted({len(budget.seeds) for budget in budgets})),
        "claims_table": tables.matrix(table, base, METHODS),
        "claims_averages": _averages(table),
        **{f"average_{arm.replace('-', '_')}": tables.difference(c) for arm, c in averages.items()},
        **{f"cells_{arm.replace('-', '_')}": tables.half(_over_cells(table, arm)) for arm in METHODS},
        "rates_shown": str(sum(control.against.differs for control in controls)),
        "rates_count": str(len(controls)),
        "rates_better": tables.count(sum(control.against.better for control in controls)),
        "claims_images": _images(results),
        "lam_near": str(sum(_is_near_the_ordinary(row) for row in table if row.arm in STRENGTHS)),
        "lam_count": str(sum(row.arm in STRENGTHS for row in table)),
        "rates_table": rates_table(controls),
        "fixed_better": str(sum(row.better for row in fixed)),
        "fixed_worse": " and ".join(
            f"{sum(row.worse for row in fixed if row.arm == arm)} of {len(base)} combinations ({name})"
            for arm, name in FIXED.items()
        ),
        "fixed_table": tables.matrix(fixed, base, FIXED),
    }
    names = {cell: tables.cell_name(cell) for cell in base}
    return parts, figures.forests("claims", table, METHODS, names)


def _images(results: Sequence[Results]) -> str:
    """How many images train, over the studies."""
    cells = [(study.spec, cell) for study in results for cell in study.spec.cells]
    return " or ".join(
        sorted({str(spec.setting(cell, spec.baseline).tables()[0].train) for spec, cell in cells})
    )


def _is_near_the_ordinary(row: Row) -> bool:
    """Whether the chosen metric scales no mode of 32 channels by more than a factor of 3."""
    lam = row.chosen["lam"]
    metric = ReweightedL2(lam) if row.arm == "reweighted" else Sobolev(lam)
    return bool((np.abs(np.log(metric.spectrum(32))) < np.log(3)).all())


class Control(NamedTuple):
    """A tuned arm, the baseline's errors at the arm's own rate, and the arm against those."""

    row: Row
    errors: list[float]
    against: Row


def at_equal_rates(table: Sequence[Row]) -> list[Control]:
    """Those tuned arms whose rate the baseline was run at, too; corrected over all of them."""
    at_rate = {
        (cell.rpartition("-")[0], setting.tables()[3].lr): study.errors(cell, "none")
        for study in studies(RATES)
        for cell in study.spec.cells
        if (setting := study.spec.setting(cell, "none"))
    }
    comparisons = [
        (row, errors, stats.compare(row.errors, errors))
        for row in table
        if (errors := at_rate.get((row.cell, row.chosen["optimizer.lr"])))
    ]
    adjusted = stats.holm([c.p for *_, c in comparisons])
    return [
        Control(row, errors, replace(row, comparison=c, p=p))
        for (row, errors, c), p in zip(comparisons, adjusted, strict=True)
    ]


def rows_at_equal_rates() -> list[Row]:
    """The tuned metrics against the baseline at their rates, as rows of a table."""
    table = [row for row in rows(studies(CLAIMS), METHODS) if row.arm in STRENGTHS]
    return [control.against for control in at_equal_rates(table)]


def _still_says_no(averages: Iterable[stats.Comparison], controls: Iterable[Control]) -> None:
    """The page's answer holds for such results alone.

    Raises:
        ValueError: a metric made fewer errors, on average or at equal rates.
    """
    if any(c.interval.high < 0 for c in averages) or any(c.against.better for c in controls):
        raise ValueError("a metric made fewer errors: evidence/build/headline.py must say something else")


def _means(table: Iterable[Row], arm: str) -> list[float]:
    """The arm's mean difference in each cell."""
    return [row.comparison.mean for row in table if row.arm == arm]


def _over_cells(table: Iterable[Row], arm: str) -> stats.Interval:
    """The interval of the mean over the cells, with the cells as the sample: it contains the noise of tuning."""
    return stats.mean_interval(_means(table, arm))


def _averages(table: Sequence[Row]) -> str:
    """A metric a row: its mean over the cells, with the seeds and with the cells as the sample."""
    lines: list[list[str]] = []
    for arm, name in METHODS.items():
        own = [row for row in table if row.arm == arm]
        means, c = _means(table, arm), average(table, arm)
        lines.append(
            [
                name,
                str(len(own)),
                tables.difference(c),
                tables.number(stats.detectable_difference(c.pairs, c.sd)),
                tables.plus_minus(c.mean, _over_cells(table, arm)),
                tables.number(stats.detectable_difference(len(means), stats.standard_deviation(means))),
                str(sum(row.better for row in own)),
                str(sum(row.worse for row in own)),
            ]
        )
    head = ["metric", "cells", "mean ± over the seeds", "MDD", "mean ± over the cells", "MDD"]
    return tables.markdown([*head, "fewer errors in", "more in"], lines, right=1)


def rates_table(controls: Iterable[Control]) -> str:
    """A tuned arm a row: its difference to the tuned baseline, and to the baseline at the arm's rate."""
    lines = [
        [
            tables.cell_name(row.cell),
            METHODS[row.arm],
            tables.difference(against.comparison, against.differs),
            tables.number(against.mdd),
            tables.difference(row.comparison, row.differs),
            tables.number(float(np.mean(errors))),
            tables.chosen(row.chosen),
        ]
        for row, errors, against in controls
    ]
    head = ["network and optimizer", "arm", "against the baseline at the arm's rate", "MDD"]
    head += ["against the tuned baseline", "baseline at the arm's rate, %", "chosen"]
    return tables.markdown(head, lines, right=2)

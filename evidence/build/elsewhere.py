"""Other axes than the channel, and other regimes: one table of where a gain was looked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from cdgrad.study.report.words import enumerated
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import claims, tables
from evidence.build.loading import ELSEWHERE, RATES, Row, rows, studies

PLACES = {
    ("axes", "small-cnn-sgd"): "digits, small CNN",
    ("depth", "resnet32-sgd"): "digits, ResNet-32",
    ("regimes-labels", "noise-20"): "digits, 20 % wrong labels",
    ("regimes-labels", "noise-40"): "digits, 40 % wrong labels",
    ("regimes-batch", "batch-4"): "digits, batch of 4",
    ("regimes-training", "few-50"): "digits, 50 images",
    ("regimes-long", "long"): "digits, 60 epochs",
    ("regimes-cifar10", "noise-40"): "CIFAR-10 (JPEG), 500 images, 40 % wrong labels",
}
REGIMES = {
    "regimes-labels": "wrong labels",
    "regimes-batch": "small batches",
    "regimes-training": "few images",
    "regimes-long": "long training",
}
ARMS = {
    "rw-height": "re-weighted, kernel height",
    "rw-width": "re-weighted, kernel width",
    "rw-height-fixed": "re-weighted at lam = 3, norm kept, kernel height",
    "rw-width-fixed": "re-weighted at lam = 3, norm kept, kernel width",
    "depth-gradient": "Sobolev along depth, gradient",
    "depth-update": "Sobolev along depth, update",
    "depth-window": "window along depth, update",
    "reweighted": "re-weighted",
    "sobolev": "Sobolev",
}


def section() -> dict[str, str]:
    """The table, what it shows in numbers, and what the learning rate has to do with it."""
    results = studies(ELSEWHERE)
    table = rows(results)
    in_rates = [_as_in_rates(row) for row in table]
    compared = claims.at_equal_rates(in_rates)
    found = {(control.row.study, control.row.cell, control.row.arm): control for control in compared}
    controls = [found.get((row.study, row.cell, row.arm)) for row in in_rates]
    by_name = {study.spec.name: study for study in results}
    lines = [_line(row, by_name[row.study], control) for row, control in zip(table, controls, strict=True)]
    head = ["where", "arm", "difference, points", "Holm p", "MDD", "against the baseline at the arm's rate"]
    head += ["baseline error (SD), %", "chosen", "seeds", "trials x seeds"]
    return {
        "elsewhere_table": tables.markdown(head, lines, right=2),
        "elsewhere_count": str(len(table)),
        "elsewhere_second": _second(by_name["axes"]),
        "elsewhere_regimes": enumerated([name for study, name in REGIMES.items() if study in by_name]),
        "elsewhere_better": _names(row for row in table if row.better),
        "elsewhere_gains": "\n".join(
            _gain(row, control) for row, control in zip(table, controls, strict=True) if row.better
        ),
        "elsewhere_worse": _names(row for row in table if row.worse),
        "elsewhere_better_count": str(sum(row.better for row in table)),
        "elsewhere_worse_count": str(sum(row.worse for row in table)),
        "elsewhere_mdd": f"{min(row.mdd for row in table):.1f} to {max(row.mdd for row in table):.1f}",
        "elsewhere_rates_count": str(len(compared)),
        "elsewhere_rates_better": _names(control.row for control in compared if control.against.better),
        "elsewhere_rates_better_count": str(sum(control.against.better for control in compared)),
        "elsewhere_labels": _labels(by_name["regimes-labels"]),
    }


def _second(study: Results) -> str:
    """The small CNN's baseline of the second search beside that of the main section's."""
    (cell,) = study.spec.cells
    (first,) = (other for other in studies(["claims-momentum"]) if cell in other.spec.cells)
    assert study.spec.tuning is not None
    assert first.spec.tuning is not None
    words = [
        f"{np.mean(of.errors(cell, 'none')):.2f} % at {of.values(cell, 'none')['optimizer.lr']:.2g}"
        for of in (study, first)
    ]
    return (
        f"The baseline of the small CNN is that of a search of {study.spec.tuning.trials} trials ({words[0]}), and not that of the\n"
        f"{first.spec.tuning.trials} trials above ({words[1]})"
    )


def _as_in_rates(row: Row) -> Row:
    """The row under the name that the baseline's runs at other rates have for its cell."""
    return row if row.study == "axes" else replace(row, cell=f"{row.study}-{row.cell}")


def _line(row: Row, study: Results, control: claims.Control | None) -> list[str]:
    base = study.errors(row.cell, study.spec.baseline)
    tuning = study.spec.tuning
    return [
        PLACES[row.study, row.cell],
        ARMS[row.arm],
        tables.difference(row.comparison, row.differs),
        tables.probability(row.p),
        tables.number(row.mdd),
        _against(row, study, control),
        f"{np.mean(base):.2f} ({stats.standard_deviation(base):.2f})",
        tables.chosen(row.chosen),
        str(row.comparison.pairs),
        f"{tuning.trials} x {len(tuning.seeds)}" if tuning else "none",
    ]


def _against(row: Row, study: Results, control: claims.Control | None) -> str:
    """The difference to the baseline at the arm's own rate."""
    if control:
        return tables.difference(control.against.comparison, control.against.differs)
    rate = "optimizer.lr"
    same = row.chosen.get(rate) == study.values(row.cell, study.spec.baseline).get(rate)
    return "the same rate" if same else "not run" if row.differs else "-"


def _gain(row: Row, control: claims.Control | None) -> str:
    """The gain, and what is left of it against the baseline at the arm's rate, if none is shown there."""
    words = f"- {ARMS[row.arm]}, {_place(row)}: {tables.difference(row.comparison)} points, p = {tables.probability(row.p)}"
    if control is None or control.against.better:
        return words
    left = tables.difference(control.against.comparison)
    return f"{words}, but {left} against the ordinary gradient at the same learning rate"


def _names(table: Iterable[Row]) -> str:
    return "; ".join(f"{ARMS[row.arm]}, {_place(row)}" for row in table) or "none"


def _place(row: Row) -> str:
    return PLACES[row.study, row.cell.removeprefix(f"{row.study}-")]


def _labels(study: Results) -> str:
    """With wrong labels: the baseline at several rates, and the re-weighted arm against each."""
    lines: list[list[str]] = []
    controls = 0
    for cell in study.spec.cells:
        errors = {study.values(cell, "none")["optimizer.lr"]: study.errors(cell, "none")}
        for other in studies(RATES):
            for of_rate in other.spec.cells:
                setting = other.spec.setting(of_rate, "none")
                if of_rate.rpartition("-")[0] == f"{study.spec.name}-{cell}":
                    errors[setting.tables()[3].lr] = other.errors(of_rate, "none")
        controls += len(errors) - 1
        for rate, values in sorted(errors.items()):
            against = stats.compare(study.errors(cell, "reweighted"), values)
            lines.append(
                [
                    PLACES[study.spec.name, cell],
                    f"{rate:.2g}",
                    f"{np.mean(values):.2f}",
                    tables.difference(against),
                    tables.number(stats.detectable_difference(against.pairs, against.sd)),
                ]
            )
    head = ["where", "the baseline's learning rate", "its error, %", "re-weighted minus it, points", "MDD"]
    if not controls:
        return "That was not run with wrong labels: the difference may be that of the learning rate."
    return "The baseline at other rates, with wrong labels:\n\n" + tables.markdown(head, lines, right=1)

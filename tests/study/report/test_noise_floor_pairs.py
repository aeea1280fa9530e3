"""Among all pairs of arms, the baseline's copy with other rounding errors adds no test."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from cdgrad.study.records import Run
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.tables import differences
from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.spec import Spec, with_rounding
from cdgrad.study.statistics import Results

ERRORS = {"sgd": (3.0, 4.0), "rounded": (3.2, 3.9), "directed": (2.5, 4.5)}


def test_the_copy_is_shown_and_neither_tested_nor_counted(tiny: Spec, make_run: Callable[..., Run]):
    study = replace(with_rounding(tiny, 3), all_pairs=True)
    assert [*study.contrasts] == ["directed vs. sgd", "rounded vs. sgd", "rounded vs. directed"]
    assert ([*study.tested_contrasts], study.tests) == (["directed vs. sgd"], 1)
    assert [*study.noise_floor] == ["rounded vs. sgd"]
    runs = [
        replace(make_run("sgd", seed, ERRORS[arm][seed]), arm=arm) for arm, seed in product(ERRORS, (0, 1))
    ]
    results = Results.of(study, runs)
    table = differences(results, "")
    assert [(row[0], row[3]) for row in table.rows] == [
        ("directed vs. sgd", "1.000"),
        ("rounded vs. sgd", "-"),
        ("rounded vs. directed", "-"),
    ]
    assert (
        "rounded vs. directed: a pair with the baseline's copy of other rounding errors, not a" in table.note
    )
    assert len(verdicts(results, "")) == 1
    (said,) = [line for line in remarks(results) if "rounding" in line]
    assert "rounded is sgd with other rounding errors: it differs from it by 0.15 points in a seed" in said
    assert "the other pairs differ by: directed vs. sgd 0.50, rounded vs. directed 0.65" in said
    assert [*replace(study, all_pairs=False, reference="rounded").tested_contrasts] == ["directed"]

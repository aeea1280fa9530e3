"""The interval of an arm's error lies between 0 and 100 %, in tables and figures alike."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from numpy.testing import assert_allclose

from cdgrad.study.records import Run
from cdgrad.study.report.figures import settings
from cdgrad.study.report.tables import errors
from cdgrad.study.spec import parse
from cdgrad.study.statistics import Results
from cdgrad.study.statistics.paired import mean_interval
from tests.tiny_study import TINY

SWEEP = TINY + "".join(f'[arms.l{lam}]\nmetric = "reweighted:lam={lam}"\n' for lam in (2, 4, 8))


def of(make_run: Callable[..., Run], text: str, first: float, second: float) -> Results:
    spec = parse(text, "tiny")
    runs = [make_run("sgd", seed, error) for seed, error in enumerate((first, second))]
    return Results.of(spec, [replace(run, arm=arm) for run in runs for arm in spec.arms])


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [(99.0, 95.0, "71.59 to 100.0"), (0.0, 1.0, "0.00 to 6.85"), (50.0, 51.0, "44.15 to 56.85")],
)
def test_a_table_cuts_the_interval_where_no_error_can_be_and_says_so(
    make_run: Callable[..., Run], first: float, second: float, shown: str
):
    table = errors(of(make_run, TINY, first, second), "")
    assert table.rows[0][2] == shown
    assert ("an interval ends at 0 and 100 %" in table.note) is (first != 50)


def test_another_measure_has_no_such_ends(make_run: Callable[..., Run]):
    text = (
        TINY.partition("[task]")[0]
        + '[metric]\nname = "loss"\ndirection = "min"\npercent = false\n[arms.sgd]\n[arms.directed]\n'
    )
    text = text.replace("seeds = 2", 'seeds = 2\nentry = "mine:run"')
    results = of(make_run, text, 0.0, 1.0)
    assert results.mean_interval("", "sgd") == mean_interval([0.0, 1.0])
    assert "an interval ends" not in errors(results, "").note


def test_the_figure_has_the_ends_of_the_table(make_run: Callable[..., Run]):
    results = of(make_run, SWEEP, 99.0, 95.0)
    drawing = settings.lam_sweep(results, "")
    assert drawing is not None
    axes: Any = drawing.figure.axes[0]
    (bars,) = axes.containers[0].lines[2]
    for segment in bars.get_segments():
        assert_allclose(segment[:, 1], results.mean_interval("", "sgd"))
    assert max(segment[1, 1] for segment in bars.get_segments()) == 100

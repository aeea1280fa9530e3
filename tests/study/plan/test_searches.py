"""Independent searches for each arm's setting: who runs what, and what the comparison is from."""

import dataclasses
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest
from old_store import as_schema

from cdgrad.study import StudyError
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records import FILE, Store, from_parquet, to_parquet
from cdgrad.study.report import paper, preview
from cdgrad.study.report.compose import document
from cdgrad.study.report.text import markdown
from cdgrad.study.spec import parse
from cdgrad.study.statistics import Results
from cdgrad.study.statistics.replicates import compare_replicates

TUNING = """
[tuning]
trials = 4
replicates = 3
seeds = [100, 101, 102, 103, 104, 105]
[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0, log = true }
"""


@pytest.fixture
def text(tiny_text):
    follower = '\n[arms.same-rate]\nmetric = "reweighted:lam=3"\ntuning = "baseline"\n'
    return tiny_text.replace("seeds = 2", "seeds = 6") + follower + TUNING


@pytest.fixture
def spec(text):
    return parse(text, "tiny")


def ended(job, error):
    measured = {"status": "ok", "error": error, "epochs": [], "measures": {}, "environment": {}}
    return job.run(datetime.now(UTC), seconds=0.0, **measured)


def error(job):
    """Search r likes trial r; a final run has its seed's and its arm's error."""
    if job.trial is not None:
        return 1.0 if job.trial == job.replicate else 9.0
    return 5.0 + job.seed + {"sgd": 0, "directed": 0.5 * (job.replicate - 1), "same-rate": 1}[job.arm]


def played(spec, runs=()):
    plan, recorded = Plan(spec, runs, "here"), [*runs]
    while job := plan.take():
        recorded.append(ended(job, error(job)))
        plan.add(recorded[-1])
    return recorded


def test_each_search_has_points_seeds_and_a_choice_of_its_own(spec):
    runs = played(spec)
    points = [spec.tuning.points("sgd", search) for search in range(3)]
    assert len({point["optimizer.lr"] for of in points for point in of}) == 12
    for run in runs:
        assert run.replicate == run.seed % 100 % 3
        if run.trial is not None:
            assert run.values == points[run.replicate][run.trial]
        else:
            assert run.values == points[run.replicate][run.replicate]
    assert len([run for run in runs if run.trial is not None]) == 2 * 4 * 6  # as one search of 6 seeds
    assert len([run for run in runs if run.trial is None]) == 3 * 6


def test_more_seeds_leave_the_searches_as_they_were(spec, text):
    runs = played(spec)
    more = parse(text.replace("seeds = 6", "seeds = 9"), "tiny")
    assert len(played(more, runs)) == len(runs) + 9


def test_another_number_of_searches_is_refused(spec, text):
    runs = played(spec)
    with pytest.raises(StudyError, match="under another specification"):
        Plan(parse(text.replace("replicates = 3", "replicates = 2"), "tiny"), runs, "here")
    # In another order, a seed belongs to another search than the one that chose its setting.
    for old, new in (("seeds = 6", "seeds = [1, 0, 2, 3, 4, 5]"), ("[100, 101,", "[101, 100,")):
        with pytest.raises(StudyError, match="or the order of seeds; it is 3"):
            Plan(parse(text.replace(old, new), "tiny"), runs, "here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "seeds = 6",
            "seeds = 5",
            "seeds must divide equally among tuning.replicates = 3 searches, and there are 5",
        ),
        (
            ", 105]",
            "]",
            "tuning.seeds must divide equally among tuning.replicates = 3 searches, and there are 5",
        ),
        (
            "seeds = 6",
            "seeds = { until = 1, most = 6 }",
            "needs a fixed number of seeds; set seeds to a number or a list",
        ),
        ("replicates = 3", "replicates = 0", "tuning.replicates must be an integer of at least 1; got 0"),
    ],
)
def test_what_the_searches_need(text, old, new, message):
    assert old in text
    with pytest.raises(StudyError) as caught:
        parse(text.replace(old, new), "tiny")
    assert message in str(caught.value)


def test_the_comparison_is_over_the_searches(spec):
    results = Results.of(spec, played(spec))
    comparison = results.comparisons["", "directed"].comparison
    over = compare_replicates([[-0.5, -0.5], [0, 0], [0.5, 0.5]])
    assert comparison.differences.tolist() == pytest.approx([-0.5, 0, 0.5])
    assert (comparison.interval, comparison.p) == (over.interval, over.p)
    assert comparison.correlation == pytest.approx(
        np.corrcoef([5, 6, 7, 8, 9, 10], [4.5, 6, 7.5, 7.5, 9, 10.5])[0, 1]
    )
    assert results.replicated["", "directed"].tuning_sd == pytest.approx(0.5)
    assert results.values("", "directed", 2) != results.values("", "directed", 0)


def test_before_two_searches_have_pairs_nothing_is_claimed(spec):
    runs = [run for run in played(spec) if run.trial is not None or run.seed == 0]
    comparison = Results.of(spec, runs).comparisons["", "directed"].comparison
    assert comparison.pairs == 1
    assert np.isnan(comparison.interval).all()
    assert "1 search has finished pairs" in markdown(document(Results.of(spec, runs)))
    two = [run for run in played(spec) if run.trial is not None or run.seed < 2]
    assert "1 search has" not in markdown(document(Results.of(spec, two)))


def test_report_plan_and_methods_say_so(spec):
    runs = played(spec)
    results = Results.of(spec, runs)
    said = " ".join(markdown(document(results)).split())
    assert "Each arm was tuned by 3 independent searches" in said
    assert "| directed | -0.50, +0.00, +0.50 | 0.50 | 0.00 | -0.47 to +0.47 |" in said
    assert "seeds 100, 103 in search 1; seeds 101, 104 in search 2; seeds 102, 105 in search 3" in said
    assert "Trials of directed, search 3" in said
    assert "t-test over the searches" in said
    text = paper.methods(results)
    assert "3 times independently, 4 trials of a scrambled Sobol sequence were executed on 2 seeds" in text
    assert "over the mean differences of the searches" in text
    planned = markdown(preview.preview(Plan(spec, runs, "here"), runs, workers=1, seconds=None, sd=None))
    assert "Statistical power of" in planned
    assert not any("can be below" in line for line in preview.warnings(spec))


def test_records_keep_the_search(spec, tmp_path):
    runs = played(spec)
    to_parquet(runs, tmp_path / "runs.parquet")
    assert {run.key: run.replicate for run in from_parquet(tmp_path / "runs.parquet")} == {
        run.key: run.replicate for run in runs
    }


def test_a_store_without_the_column_is_read_checked_and_brought_up_to_date(tmp_path, make_run):
    with Store(tmp_path, write=True) as store:
        store.add(make_run("sgd", 0, 3.0), store.use_spec("tiny", "text"))
    as_schema(tmp_path / FILE, 4)
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        assert "replicate" not in {row[1] for row in db.execute("PRAGMA table_info(runs)")}
    with Store(tmp_path, write=False) as store:
        (run,) = store.runs()
    assert (run.error, run.replicate) == (3.0, 0)
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        assert db.execute("SELECT length(digest) FROM runs").fetchone() == (64,)
        db.execute("UPDATE runs SET error = 2.0")
    with Store(tmp_path, write=False) as store, pytest.raises(StudyError, match="differs from its digest"):
        store.runs()
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute("UPDATE runs SET error = 3.0")
    with Store(tmp_path, write=True) as store:
        assert store.runs() == [dataclasses.replace(run, replicate=0)]
        store.add(make_run("sgd", 1, 4.0, replicate=1), store.use_spec("tiny", "text"))
        assert [run.replicate for run in store.runs()] == [0, 1]

"""Studies that add seeds until a comparison is decided, margins, and what rounding alone does."""

import dataclasses

import numpy as np
import pytest

from cdgrad.study import StudyError
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.run import Run
from cdgrad.study.report.compose import document
from cdgrad.study.report.preview import warnings
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.text import markdown
from cdgrad.study.report.verdicts import across_cells, verdicts
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.engine import RunDone
from cdgrad.study.spec import parse
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p
from cdgrad.study.statistics.stopping import enough


@pytest.fixture
def spec(tiny_text):
    return parse(tiny_text.replace("seeds = 2", "seeds = { until = 0.5, most = 40 }"), "tiny")


def record(job, error):
    evaluated, fingerprint = job.setting.evaluate, job.setting.fingerprint
    return Run(*job.key, "ok", error, evaluated, job.values, [], {}, {}, fingerprint, {}, "", 0.0)


def driven(spec, errors):
    """The runs of a study whose runs take equally long, two at a time; `errors` of (arm, seed)."""
    plan, runs = Plan(spec, [], "here", enough), []
    while running := list(filter(None, [plan.take(), plan.take()])):
        for job in running:
            runs.append(record(job, errors(job.arm, job.seed)))
            plan.add(runs[-1])
    assert plan.done == plan.total == len(runs)
    return runs


def noise(arm, seed):
    return float(np.random.default_rng([seed, arm == "sgd"]).normal())


@pytest.mark.parametrize(("effect", "sd", "early"), [(3.0, 1.0, True), (0.0, 0.1, True), (0.0, 3.0, False)])
def test_seeds_are_added_until_the_comparison_is_decided(spec, effect, sd, early):
    runs = driven(spec, lambda arm, seed: 10 + sd * noise(arm, seed) - effect * (arm == "directed"))
    results = Results.of(spec, runs)
    comparison, _ = results.comparisons["", "directed"]
    assert (comparison.pairs < 40) == early
    differences = comparison.differences
    assert comparison.interval == anytime_interval(differences)
    assert comparison.p == anytime_p(differences)
    decided = comparison.p < 0.05 or comparison.interval.high - comparison.interval.low < 0.5
    assert decided == early
    assert not any(enough(spec, [list(differences[:seeds])]) for seeds in range(comparison.pairs - 2))
    assert results.count == results.total == 2 * comparison.pairs


def test_equal_results_decide_nothing(spec):
    assert not enough(spec, [[0.0] * 30])
    assert not enough(spec, [[]])


def test_the_rule_corrects_for_the_comparisons_of_the_study(spec):
    differences = list(np.linspace(-0.7, 3.3, 15))
    p = anytime_p(differences)
    assert 0.05 / 3 < p < 0.05
    wide = dataclasses.replace(spec, until=1e-6)
    assert enough(wide, [differences])
    three = dataclasses.replace(wide, cells=dict.fromkeys("abc", spec.cells[""]))
    assert not enough(three, [differences])


def test_a_seed_that_is_ahead_of_an_unfinished_one_is_not_looked_at(spec):
    plan = Plan(spec, [], "here", enough)
    jobs = {(job.arm, job.seed): job for job in iter(plan.take, None)}
    assert {seed for _, seed in jobs} == {0, 1}
    for arm in ("sgd", "directed"):
        plan.add(record(jobs[arm, 1], 5.0))
    assert plan.take() is None
    for arm in ("sgd", "directed"):
        plan.add(record(jobs[arm, 0], 5.0))
    assert {job.seed for job in iter(plan.take, None)} == {2, 3}


def test_runs_that_had_started_when_a_cell_ended_are_counted(spec):
    plan = Plan(spec, [], "here", lambda _, differences: len(differences[0]) == 2)
    for job in [plan.take(), plan.take()]:
        plan.add(record(job, 5.0))
    running = list(iter(plan.take, None))  # seeds 1 and 2
    for job in running[:2]:
        plan.add(record(job, 5.0))
    assert (plan.take(), plan.done, plan.total) == (None, 4, 6)


def test_the_seeds_of_a_study_with_a_fixed_number_start_at_once(tiny_text):
    plan = Plan(parse(tiny_text.replace("seeds = 2", "seeds = 5"), "tiny"), [], "here", enough)
    assert len(list(iter(plan.take, None))) == 5 * 2


def test_a_study_that_has_ended_stays_ended(spec, tmp_path, capsys):
    def engine(take, workers):
        while job := take():
            yield RunDone(0, job, record(job, 10 + 0.1 * noise(job.arm, job.seed)))

    executed = run_study(spec, tmp_path, 2, engine)
    assert 10 <= len(executed) < 80
    assert "tiny: at most 80 runs, 0 of them finished" in capsys.readouterr().err
    assert run_study(spec, tmp_path, 2, engine) == []


def test_the_report_of_an_ended_study_is_not_provisional_and_says_how_it_ended(spec):
    runs = driven(spec, lambda arm, seed: 10 + noise(arm, seed) - 3 * (arm == "directed"))
    text = markdown(document(Results.of(spec, runs)))
    assert "provisional" not in text
    assert "The number of seeds followed from the results" in text
    assert "95 % anytime" in text
    assert "95 % t " not in text
    few = markdown(document(Results.of(spec, runs[:4])))
    assert "an anytime-valid interval needs 6 or more" in few


def test_a_failed_run_that_an_ended_cell_does_not_need_is_not_left(spec):
    runs = driven(spec, lambda arm, seed: 10 + 0.1 * noise(arm, seed))
    beyond = dataclasses.replace(runs[0], seed=39, status="failed", error=None, message="lost")
    assert not [
        said for said in remarks(Results.of(spec, [*runs, beyond])) if "remain" in said or "lost" in said
    ]


def test_a_plan_that_adds_seeds_speaks_of_the_test_that_it_uses(tiny_text):
    for most, said in ((5, ["With at most 5 seeds there is no anytime-valid interval"]), (6, [])):
        text = tiny_text.replace("seeds = 2", f"seeds = {{ until = 0.5, most = {most} }}")
        text += "rescale = 'norm'\n[arms.third]\nmetric = 'reweighted:lam=2'\nrescale = 'norm'\n"
        found = list(warnings(parse(text, "tiny")))
        assert [each[: len(s)] for each, s in zip(found, said, strict=True)] == said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{ until = 0, most = 9 }", "seeds.until must be a positive number; got 0"),
        ("{ until = 0.2 }", "seeds.most is missing"),
        ("{ until = 0.2, most = 1 }", "seeds.most must be an integer of at least 2; got 1"),
    ],
)
def test_a_rule_that_cannot_be_used_is_explained(tiny_text, value, message):
    with pytest.raises(StudyError, match=message):
        parse(tiny_text.replace("seeds = 2", f"seeds = {value}"), "tiny")


def results_of(spec, sd, effect=0.0):
    jobs = iter(Plan(spec, [], "here").take, None)
    return Results.of(
        spec,
        [record(job, 10 + sd * noise(job.arm, job.seed) - effect * (job.arm == "directed")) for job in jobs],
    )


def test_equivalence_is_reported_where_a_margin_was_given(tiny_text):
    text = tiny_text.replace("seeds = 2", "seeds = 10\nmargin = 0.5")
    spec = parse(text, "tiny")
    page = markdown(document(results_of(spec, 0.2)))
    assert "directed and sgd are equivalent within 0.5 points (TOST p = " in page
    assert "equivalence within 0.5 points is not shown" in markdown(document(results_of(spec, 3.0)))
    plain = markdown(document(results_of(parse(tiny_text.replace("seeds = 2", "seeds = 10"), "tiny"), 0.2)))
    assert "equivalent" not in plain
    assert "After any number of looks" in plain


def test_a_margin_changes_no_fingerprint(tiny, tiny_text):
    spec = parse(tiny_text.replace("seeds = 2", "seeds = 2\nmargin = 0.5"), "tiny")
    assert spec.setting("", "sgd").fingerprint == tiny.setting("", "sgd").fingerprint


def test_the_report_says_what_rounding_alone_changes(tiny_text):
    text = tiny_text.replace("seeds = 2", "seeds = 6") + "\n[arms.rounded]\nrounding = 3\n"
    results = results_of(parse(text, "tiny"), 1.0, effect=2.0)
    rounded = results.comparisons["", "rounded"].comparison
    other = results.comparisons["", "directed"].comparison
    size, beside = (f"{abs(comparison.differences).mean():.2f}" for comparison in (rounded, other))
    assert (
        f"rounded is sgd with other rounding errors: it differs from it by {size} points in a seed, on "
        f"average of absolute values, and by {rounded.mean:+.2f} in the mean. In a seed, the others differ "
        f"from sgd by: directed {beside}."
    ) in markdown(document(results))
    assert not [said for said in verdicts(results, "") + across_cells(results) if said.startswith("rounded")]
    changed = text.replace("rounding = 3", "rounding = 3\noptimizer = { lr = 0.2 }")
    assert "other rounding errors" not in markdown(document(results_of(parse(changed, "tiny"), 1.0)))

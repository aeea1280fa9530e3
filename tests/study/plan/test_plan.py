"""Which runs follow from a specification and from the records of its runs, without training any."""

from datetime import UTC, datetime

import pytest

from cdgrad.study import StudyError
from cdgrad.study.plan.plan import Plan
from cdgrad.study.report.methods import methods
from cdgrad.study.report.remarks import remarks
from cdgrad.study.run import run_study
from cdgrad.study.spec import parse
from cdgrad.study.statistics.results import Results

TUNING = """
[arms.same-rate]
metric = "reweighted:lam=3"
tuning = "baseline"
[arms.fixed]
tuning = "none"
[cells.a]
[cells.b]
model.width = 3
[tuning]
trials = 3
seeds = [100, 101]
[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0, log = true }
"""


OWN = """
baseline = "a"
seeds = 2
entry = "mine:run"
arms.a = {{}}
metric = {{ name = "score", direction = "{direction}" }}
[tuning]
trials = 3
seeds = [7]
space.lr = {{ low = 0.01, high = 1.0 }}
"""


@pytest.fixture
def text(tiny_text) -> str:
    return tiny_text + TUNING


@pytest.fixture
def spec(text):
    return parse(text, "tiny")


def ended(job, error, status="ok"):
    """The record of a job with a given error."""
    error = None if status == "failed" else error
    return job.run(
        datetime.now(UTC), status=status, error=error, epochs=[], measures={}, environment={}, seconds=0.0
    )


def played(spec, error=lambda job: 5.0 + (job.trial or 0), runs=(), until=lambda job: False):
    """All the jobs of a study in the order that one worker makes them; their runs' errors are given."""
    plan, order, recorded = Plan(spec, runs, "here"), [], list(runs)
    while job := plan.take():
        if until(job):
            break
        run = ended(job, error(job))
        plan.add(run)
        recorded.append(run)
        order.append(job)
    return order, recorded


def test_trials_first_and_final_runs_seed_by_seed_as_soon_as_their_arm_is_tuned(spec):
    order, _ = played(spec)
    assert len(order) == len(Plan(spec, [], "here").keys) == 2 * (3 * 2 * 2 + 4 * 2)
    first_cell = [(job.arm, job.trial, job.seed) for job in order if job.cell == "a"]
    assert first_cell[:4] == [("sgd", 0, 100), ("directed", 0, 100), ("sgd", 0, 101), ("directed", 0, 101)]
    assert first_cell[12:] == [(arm, None, seed) for seed in (0, 1) for arm in spec.arms]
    assert [job.cell for job in order] == ["a"] * 20 + ["b"] * 20
    # What nothing is chosen for can start at once, and only that.
    ready = list(iter(Plan(spec, [], "here").take, None))
    assert {job.arm for job in ready if job.trial is None} == {"fixed"}


def test_the_final_runs_use_the_best_trial_of_their_own_cell(spec):
    def error(job):
        return abs((job.trial or 0) - (2 if job.cell == "a" else 1)) + job.seed % 2

    order, recorded = played(spec, error)
    points = spec.tuning.points("sgd")
    for job in order:
        if job.trial is not None:
            assert job.values == points[job.trial]
            assert job.setting == spec.setting(job.cell, job.arm, points[job.trial], trial=True)
            continue
        best = {} if job.arm == "fixed" else points[2 if job.cell == "a" else 1]
        assert job.values == best
        assert job.setting == spec.setting(job.cell, job.arm, best)
    choice = Plan(spec, recorded, "here").choice("a", "directed")
    assert (choice.trial, choice.errors) == (2, {0: [2.0, 3.0], 1: [1.0, 2.0], 2: [0.0, 1.0]})
    assert Plan(spec, recorded, "here").choice("a", "fixed") is None


@pytest.mark.parametrize(("direction", "best"), [("min", 1), ("max", 2)])
def test_the_best_trial_follows_the_direction_of_the_measure(direction, best):
    spec = parse(OWN.format(direction=direction), "own")
    order, _ = played(spec, by_trial([3.0, 2.0, 4.0]))
    assert [job.values for job in order if job.trial is None] == [spec.tuning.points("a")[best]] * 2


@pytest.mark.parametrize("stop", [0, 1, 5, 12, 13, 19, 25, 39])
def test_a_study_that_stopped_anywhere_goes_on_to_the_same_runs(spec, stop):
    whole, _ = played(spec)
    count = iter(range(1000))
    before, recorded = played(spec, until=lambda job: next(count) == stop)
    after, _ = played(spec, runs=recorded)
    assert before + after == whole


def test_an_arm_with_a_failed_trial_waits_for_it(spec):
    plan, recorded = Plan(spec, [], "here"), []
    for job in list(iter(plan.take, None)):
        failed = (job.cell, job.arm, job.trial, job.seed) == ("a", "directed", 1, 100)
        recorded.append(ended(job, 5.0, "failed" if failed else "ok"))
        plan.add(recorded[-1])
    assert ("a", "directed") not in {(job.cell, job.arm) for job in iter(plan.take, None)}
    assert [job.key for job in iter(Plan(spec, recorded, "here").take, None) if job.trial is not None] == [
        ("a", "directed", 1, 100)
    ]


def test_a_diverged_trial_counts_as_measured(spec):
    def error(job):
        return 90.0 if job.trial in (0, 1) else 50.0

    plan = Plan(spec, [], "here")
    for job in list(iter(plan.take, None)):
        plan.add(ended(job, error(job), "diverged"))
    assert plan.choice("a", "sgd").trial == 2


def test_seeds_arms_and_cells_may_be_added(text, spec):
    _, recorded = played(spec)
    more = parse(
        text.replace("seeds = 2", "seeds = 3") + "[arms.third]\ntuning = 'none'\n[cells.c]\n", "tiny"
    )
    order, _ = played(more, runs=recorded)
    assert {(job.cell, job.arm, job.seed) for job in order if job.cell in "ab"} == {
        *((cell, arm, 2) for cell in "ab" for arm in more.arms),
        *((cell, "third", seed) for cell in "ab" for seed in (0, 1)),
    }


@pytest.mark.parametrize(
    ("old", "new", "finals", "message"),
    [
        ("high = 1.0", "high = 2.0", False, "trials of arm .* in cell a .*optimizer.lr was 0.* and is 0"),
        ("high = 1.0", "high = 2.0", True, r"optimizer.lr was 0.* and is 0"),
        ("trials = 3", "trials = 2", True, r"\(tuning.trials was 3 or more and is 2\)"),
        ("[100, 101]", "[100]", True, r"\(tuning.seeds had 101 and is \[100\]\)"),
        ("[100, 101]", "[100, 101, 102]", True, r"\(tuning.seeds was another list than"),
        ("momentum = 0.9", "momentum = 0.8", True, r"\(optimizer.arguments.momentum was 0.9 and is 0.8\)"),
        ("momentum = 0.9", "momentum = 0.8", False, "trials of arm .*momentum was 0.9 and is 0.8"),
        ("model.width = 3", "model.width = 4", True, "in cell b .*model.arguments.width was 3 and is 4"),
        ('tuning = "baseline"', 'tuning = "own"', True, "tuning.trials was 0 and is 3"),
        (
            'tuning = "baseline"',
            'tuning = "none"',
            True,
            r"arm same-rate .*\(optimizer.lr was 0.5.* and is None",
        ),
    ],
)
def test_a_changed_specification_is_never_mixed_with_old_runs(text, spec, old, new, finals, message):
    assert old in text
    _, recorded = played(spec)
    recorded = [run for run in recorded if finals or (run.trial is not None and run.trial < 2)]
    with pytest.raises(StudyError, match=message) as caught:
        Plan(parse(text.replace(old, new), "tiny"), recorded, "here")
    assert "never mixed; restore the specification, or choose another --out" in str(caught.value)


def test_more_trials_may_be_asked_for_before_the_first_final_run(text, spec):
    _, recorded = played(spec)
    trials = [run for run in recorded if run.trial is not None]
    more = Plan(parse(text.replace("trials = 3", "trials = 4"), "tiny"), trials, "here")
    assert {job.trial for job in iter(more.take, None) if job.arm != "fixed"} == {3}


def by_trial(errors):
    return lambda job: errors[job.trial] if job.trial is not None else 5.0


@pytest.mark.parametrize("done_before", [0, 3, 8])
def test_trials_may_be_added_and_the_recorded_ones_are_kept(text, spec, done_before):
    """Trial 3 becomes the best, so that the final runs of tuned arms are repeated with its values."""
    _, recorded = played(spec, by_trial([3, 2, 4]))
    more = parse(text.replace("trials = 3", "trials = 4"), "tiny")
    count = iter(range(1000))
    before, recorded = played(
        more, by_trial([3, 2, 4, 1]), recorded, until=lambda job: next(count) == done_before
    )
    after, recorded = played(more, by_trial([3, 2, 4, 1]), recorded)
    order = before + after
    assert [job for job in order if job.trial is not None and job.trial < 3] == []
    assert sum(job.trial == 3 for job in order) == 2 * 2 * 2
    best = more.tuning.points("sgd")[3]
    finals = {(job.cell, job.arm, job.seed): job.values for job in order if job.trial is None}
    tuned = ("sgd", "directed", "same-rate")
    assert finals == {(cell, arm, seed): best for cell in "ab" for arm in tuned for seed in (0, 1)}
    assert Plan(more, {run.key: run for run in recorded}.values(), "here").take() is None


def test_final_runs_are_kept_where_further_trials_are_no_better(text, spec):
    _, recorded = played(spec, by_trial([3, 2, 4]))
    more = parse(text.replace("trials = 3", "trials = 4"), "tiny")
    plan = Plan(more, recorded, "here")
    assert plan.total - plan.done == 2 * 2 * 2 + 2 * 3 * 2  # what may have to be repeated remains, too
    order, recorded = played(more, by_trial([3, 2, 4, 9]), recorded)
    assert {job.trial for job in order} == {3}
    plan = Plan(more, recorded, "here")
    assert plan.done == plan.total


def test_a_final_run_of_another_setting_is_still_refused_where_trials_were_added(text, spec):
    _, recorded = played(spec, by_trial([3, 2, 4]))
    more = text.replace("trials = 3", "trials = 4").replace("epochs = 1", "epochs = 2")
    with pytest.raises(StudyError, match="epochs was 1 and is 2"):
        Plan(parse(more, "tiny"), recorded, "here")
    finals = [run for run in recorded if run.trial is None]  # without the trials that led to them
    with pytest.raises(StudyError, match=r"tuning\.trials was 0 and is 4"):
        Plan(parse(text.replace("trials = 3", "trials = 4"), "tiny"), finals, "here")


def test_a_report_leaves_out_the_final_runs_that_a_shorter_search_led_to(text, spec):
    _, recorded = played(spec, by_trial([3, 2, 4]))
    more = parse(text.replace("trials = 3", "trials = 4"), "tiny")
    count = iter(range(1000))
    _, recorded = played(more, by_trial([3, 2, 4, 1]), recorded, until=lambda job: next(count) == 10)
    runs = {run.key: run for run in recorded}
    results = Results.of(more, runs.values(), [spec])
    assert len({str(run.values) for run in results.finished["b", "sgd"].values()}) <= 1
    compared = 0
    for (cell, arm), by_seed in results.finished.items():
        search = results.searches.get((cell, "sgd" if arm == "same-rate" else arm, 0))
        chosen = None if search is None else search.chosen
        compared += 0 if chosen is None else len(by_seed)
        assert chosen is None or all(run.values == search.values[chosen] for run in by_seed.values())
    assert compared > 0
    assert results.count < len([run for run in recorded if run.trial is None])
    assert any("tuning.trials grew from 3 to 4" in remark for remark in remarks(results))


SEARCHED = """
[tuning]
trials = 2
seeds = [100]
[tuning.space]
optimizer = { lr = { low = 0.01, high = 1.0 }, momentum = { low = 0.0, high = 0.99 } }
schedule.batch = { choices = [8, 12] }
model.width = { choices = [3, 4] }
"""


def test_the_methods_state_no_value_of_a_key_that_was_searched(tiny_text):
    spec = parse(tiny_text + SEARCHED, "tiny")
    text = methods(Results.of(spec, played(spec)[1]))
    assert "The network small-cnn was trained on 48 training" in text
    assert (
        "by torch.optim:SGD with a searched initial learning rate for sgd (1 epochs, cosine decay)." in text
    )
    spec = parse(tiny_text.replace("[arms.sgd]", "[arms.sgd]\ntuning = 'none'") + SEARCHED, "tiny")
    text = methods(Results.of(spec, played(spec)[1]))
    assert "The network small-cnn (width 2) was trained" in text
    rest = "at an initial learning rate of 0.1 for sgd (batch size 16, 1 epochs, cosine decay, momentum 0.9)."
    assert rest in text
    chosen = SEARCHED.replace("lr =", 'name = { choices = ["torch.optim:SGD", "torch.optim:Adam"] }, lr =')
    spec = parse(
        tiny_text
        + chosen.replace("model.width", "model.initialization")
        .replace("[3, 4]", '["default", "fan-out"]')
        .replace(", momentum = { low = 0.0, high = 0.99 }", ""),
        "tiny",
    )
    text = methods(Results.of(spec, played(spec)[1]))
    assert "The network small-cnn (width 2) was trained" in text
    assert "by a searched optimizer with a searched initial learning rate for sgd (1 epochs, cosine" in text


TOGETHER = """
[tuning]
trials = 8
seeds = [7]
space."schedule.batch" = { choices = [4, 16] }
space."schedule.accumulate" = { choices = [1, 8] }
"""


def test_values_that_are_not_possible_together_are_refused_before_the_first_run(tiny_text):
    message = r"trial \d are not possible together for arm sgd: schedule.accumulate must be at most batch = 4"
    with pytest.raises(StudyError, match=message):
        Plan(parse(tiny_text + TOGETHER, "tiny"), [], "out")


def test_the_settings_of_a_plan_are_those_of_its_trials_too(tiny_text, tmp_path):
    names = ["torch.optim:SGD", "absent:Adam"]
    chosen = f'space."optimizer.name".choices = {names}\nspace."optimizer.lr" = {{ low = 0.1, high = 1.0 }}'
    alone = tiny_text.replace(", lr = 0.3", "").replace("optimizer = { lr = 0.3 }", "")
    spec = parse(f"{alone}\n[tuning]\ntrials = 4\nseeds = [7]\n{chosen}", "tiny")
    plan = Plan(spec, [], "out")
    assert len(plan.settings) == 2 * 4
    assert {setting.optimizer.name for setting in plan.settings} == {*names}
    with pytest.raises(StudyError, match="absent:Adam: there is no module absent"):
        run_study(spec, tmp_path, 1)

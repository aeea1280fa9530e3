"""Cells, search spaces and the settings that come of them."""

import json
import math
import re
import sys

import pytest
from tiny_study import assert_refused

from cdgrad.study import StudyError
from cdgrad.study.plan.search import best_trial
from cdgrad.study.spec import Optimizer, Spec, as_json, parse
from cdgrad.study.spec.space import Dimension, Tuning

CELLS = """
[cells.narrow]
[cells.wide-adam]
model.width = 3
optimizer = { name = "torch.optim:Adam", lr = 1e-3 }
[cells.own-net]
model = { name = "mynet:build", depth = 2 }
schedule.epochs = 2
"""
TUNING = """
[tuning]
trials = 4
seeds = [100, 101]
[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0, log = true }
[tuning.arms.directed]
lam = { low = 0.1, high = 10.0, log = true }
"""


@pytest.fixture
def cells(tiny_text) -> Spec:
    return parse(tiny_text + CELLS, "tiny")


@pytest.fixture
def tuned(tiny_text) -> Spec:
    return parse(tiny_text + TUNING, "tiny")


def test_a_study_without_cells_has_one_without_a_name(tiny):
    assert list(tiny.cells) == [""]


def test_a_cell_changes_only_what_it_names(cells):
    narrow, wide, own = (cells.setting(cell, "sgd") for cell in cells.cells)
    assert narrow.model.arguments == {"width": 2}
    assert (wide.model.name, wide.model.arguments) == ("small-cnn", {"width": 3})
    assert (own.schedule.epochs, own.schedule.batch) == (2, narrow.schedule.batch)
    assert narrow.task == wide.task == own.task


def test_another_name_inherits_no_arguments(cells):
    assert cells.setting("wide-adam", "sgd").optimizer == Optimizer("torch.optim:Adam", 1e-3)
    assert cells.setting("wide-adam", "directed").optimizer == Optimizer("torch.optim:Adam", 0.3)
    assert cells.setting("own-net", "sgd").model.arguments == {"depth": 2}


def test_a_cell_may_hold_what_the_study_leaves_open(tiny_text):
    text = tiny_text.replace('[model]\nname = "small-cnn"\nwidth = 2\n', "")
    with pytest.raises(StudyError, match="tiny: model is missing"):
        parse(text, "tiny")
    with pytest.raises(StudyError, match="tiny: model is missing"):
        parse(text + "[cells.a]\n", "tiny")
    assert parse(text + '[cells.a]\nmodel.name = "small-cnn"\n', "tiny").setting("a", "sgd")


def test_values_are_put_in_the_setting(tuned, cells):
    values = {"optimizer.lr": 0.7, "optimizer.weight_decay": 1e-3, "lam": 2.5, "direction": "input"}
    setting = tuned.setting("", "directed", values)
    assert setting.optimizer == Optimizer("torch.optim:SGD", 0.7, {"momentum": 0.9, "weight_decay": 1e-3})
    assert (setting.metric, setting.direction) == ("reweighted:lam=2.5", "input")
    assert cells.setting("narrow", "sgd", {"model.width": 4}).model.arguments == {"width": 4}


def test_a_trial_never_evaluates_the_test_part(tuned):
    assert tuned.setting("", "sgd").evaluate == "test"
    assert tuned.setting("", "sgd", trial=True).evaluate == "validation"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.width = 3", "modl.width = 3", "unknown key cells.wide-adam.modl; did you mean cells."),
        ("model.width = 3", "task.train = 0", "cells.wide-adam.task.train must be an integer of at least 1"),
        ("lr = 1e-3", "lr = -1", "cells.wide-adam.optimizer.lr must be a positive number; got -1.0"),
        (", lr = 1e-3", "", "cells.wide-adam.optimizer.lr is missing"),
        ("[cells.narrow]", "[cells.'a b']", "cell name 'a b' is not allowed"),
        ("[cells.narrow]", "[cells.narrow]\nmodel = 3", "cells.narrow.model must be a table of keys; got 3"),
        ("trials = 4", "trials = 0", "tuning.trials must be an integer of at least 1; got 0"),
        ("trials = 4", "", "tuning.trials is missing"),
        ("trials = 4", "trial = 4", "unknown key tuning.trial; did you mean tuning.trials?"),
        ("[100, 101]", "[100, 4294967296]", "tuning.seeds must be disjoint from seeds"),
        ("[100, 101]", "[100, 1]", "tuning.seeds must be disjoint from seeds, so that final runs use seeds"),
        (
            "[100, 101]",
            "[100, 100]",
            "tuning.seeds must be a count of at least 1 and at most 100000, or a list",
        ),
        ("low = 0.01", "low = 1.0", 'tuning.space."optimizer.lr".high must be above low, which is 1.0'),
        ("low = 0.01", "low = 0", 'tuning.space."optimizer.lr".low must be positive where log = true'),
        ("low = 0.01", "low = -inf", 'tuning.space."optimizer.lr".low must be a finite number; got -inf'),
        ("low = 0.01, ", "", 'tuning.space."optimizer.lr".low is missing'),
        ("log = true", "log = 1", 'tuning.space."optimizer.lr".log must be true or false; got 1'),
        ("log = true", "lgo = true", 'unknown key tuning.space."optimizer.lr".lgo; did you mean'),
        ("log = true", "integer = true", 'tuning.space."optimizer.lr".low must be an integer where'),
        (
            "low = 0.01, high = 1.0, log = true",
            "choices = [1]",
            "choices must be a list of at least 2",
        ),
        ("low = 0.01, high = 1.0, log = true", "choices = [1, 1]", "choices must be a list of at least 2"),
        ('"optimizer.lr"', '"optimizr.lr"', "unknown key optimizr.lr; did you mean"),
        ('"optimizer.lr"', '"task.train"', "unknown key task.train"),
        ('"optimizer.lr"', '"schedule.epoch"', "unknown key schedule.epoch; did you mean schedule.epochs?"),
        (
            '"optimizer.lr"',
            '"schedule.epochs"',
            'tuning.space."schedule.epochs" = 0.01 is not possible for arm sgd in cell narrow: '
            "schedule.epochs must be an integer of at least 1; got 0.01",
        ),
        ('"optimizer.lr"', '"lam"', 'tuning.space."lam" = 0.01 is not possible for arm sgd in cell narrow:'),
        ("lam = { low = 0.1", "lam = { low = -1", 'tuning.arms.directed."lam".low must be positive'),
        ("arms.directed]\nlam", "arms.direct]\nlam", "unknown key tuning.arms.direct; did you mean"),
        (
            '"optimizer.lr" = ',
            '# "optimizer.lr" = ',
            "arm sgd has nothing to tune; add a key to tuning.space or",
        ),
        (
            "[tuning.space]",
            "[tuning.space]\noptimizer.lr = { low = 5.0, high = 6.0 }",
            'tuning.space."optimizer.lr" is given twice, in quotes and with dots; remove one',
        ),
    ],
)
def test_an_error_names_the_key_what_came_and_what_is_allowed(tiny_text, old, new, message):
    assert_refused(tiny_text + CELLS + TUNING, old, new, message)


@pytest.mark.parametrize(
    ("sgd", "directed", "message"),
    [
        ("own", "none", "unknown key tuning.arms.directed; known are sgd"),
        ("own", "best", "arms.directed.tuning must be one of own, baseline, none; got 'best'"),
        ("none", "baseline", "needs a tuned baseline; sgd is not tuned"),
        ("baseline", "own", "needs a tuned baseline; sgd is not tuned"),
        ("none", "none", "the table tuning has no effect where no arm is tuned; remove it, or tune an arm"),
    ],
)
def test_where_an_arm_takes_its_setting_from(tiny_text, sgd, directed, message):
    text = tiny_text + TUNING
    text = text.replace("[arms.sgd]", f'[arms.sgd]\ntuning = "{sgd}"')
    text = text.replace("[arms.directed]", f'[arms.directed]\ntuning = "{directed}"', 1)
    with pytest.raises(StudyError) as caught:
        parse(text, "tiny")
    assert message in str(caught.value)


def test_an_arm_option_without_its_table_is_refused(tiny_text):
    with pytest.raises(StudyError, match=r"arms.sgd.tuning has no effect without a table tuning"):
        parse(tiny_text.replace("[arms.sgd]", '[arms.sgd]\ntuning = "none"'), "tiny")


def test_points_are_a_function_of_the_space_and_more_of_them_begin_with_the_same(tuned, capfd):
    points = tuned.tuning.points("sgd")
    assert points == tuned.tuning.points("sgd")
    more = Tuning(16, (0,), tuned.tuning.space, {})
    assert more.points("directed")[:4] == points
    assert {key for point in tuned.tuning.points("directed") for key in point} == {"optimizer.lr", "lam"}
    # One point in each quarter of the logarithmic range, as a Sobol sequence of 4 has.
    assert sorted(int(2 * (math.log10(p["optimizer.lr"]) + 2)) for p in points) == [0, 1, 2, 3]
    assert capfd.readouterr().err == ""


def test_an_arm_s_own_range_takes_the_place_of_the_common_one(tiny_text):
    own = TUNING + '"optimizer.lr" = { low = 2.0, high = 3.0 }\n'
    tuning = parse(tiny_text + own, "tiny").tuning
    assert tuning.of("sgd") == {"optimizer.lr": Dimension(0.01, 1.0, log=True)}
    assert tuning.of("directed") == {
        "optimizer.lr": Dimension(2.0, 3.0),
        "lam": Dimension(0.1, 10.0, log=True),
    }
    assert all(2 <= point["optimizer.lr"] <= 3 for point in tuning.points("directed"))


def test_the_order_of_keys_and_arms_does_not_matter_to_the_points():
    space = {"b": Dimension(0.0, 1.0), "a": Dimension(1e-3, 1.0, log=True)}
    points = Tuning(8, (0,), space, {}).points("one")
    assert Tuning(8, (0,), dict(sorted(space.items())), {}).points("other") == points
    assert Tuning(8, (0,), {}, {"third": space}).points("third") == points


def test_points_stay_in_their_ranges_and_types():
    space = {
        "a": Dimension(-1.0, 1.0),
        "b": Dimension(2, 5, integer=True),
        "c": Dimension(choices=("x", "y", "z")),
    }
    points = Tuning(64, (0,), space, {}).points("any")
    assert all(-1 <= p["a"] <= 1 for p in points)
    assert {p["b"] for p in points} == {2, 3, 4, 5}
    assert all(type(p["b"]) is int for p in points)
    assert {p["c"] for p in points} == {"x", "y", "z"}
    assert [value in space["b"] for value in (2, 5, 1, 6, 3.0, True)] == [True, True, *4 * [False]]
    assert [value in space["c"] for value in ("x", "w", 1)] == [True, False, False]


def test_the_best_trial_has_the_lowest_mean_and_of_equal_ones_is_the_first():
    assert best_trial({0: [4.0, 2.0], 1: [1.0, 4.0], 2: [2.0, 3.0]}) == 1
    assert best_trial({0: [math.nan, 0.0], 1: [90.0, 90.0]}) == 1
    assert best_trial({1: [90.0], 0: [90.0]}) == 0


def test_dotted_tables_and_quoted_keys_are_the_same_space(tiny_text):
    nested = TUNING.replace('"optimizer.lr"', "optimizer.lr")
    assert parse(tiny_text + nested, "tiny").tuning == parse(tiny_text + TUNING, "tiny").tuning


POINTS = """
[tuning.points]
sgd = [{ optimizer.lr = 0.01 }, { "optimizer.lr" = 0.1 }, { optimizer.lr = 1 }, { optimizer.lr = 0.5 }]
"""


def test_listed_points_take_the_place_of_the_sequence(tiny_text, tuned, monkeypatch):
    listed = parse(tiny_text + TUNING + POINTS, "tiny").tuning
    assert listed.points("directed") == tuned.tuning.points("directed")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert [point["optimizer.lr"] for point in listed.points("sgd")] == [0.01, 0.1, 1.0, 0.5]
    assert all(type(point["optimizer.lr"]) is float for point in listed.points("sgd"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{ optimizer.lr = 0.01 }, ", "", "tuning.points.sgd must be a list of 4 tables, one a trial; got"),
        ("optimizer.lr = 0.01", "lam = 1", "unknown key tuning.points.sgd[0].lam; known are optimizer.lr"),
        (
            "{ optimizer.lr = 0.01 }",
            "{}",
            "sgd[0].optimizer.lr is missing; it must be in its space, 0.01 to 1",
        ),
        ("0.01 }", "2.0 }", 'tuning.points.sgd[0]."optimizer.lr" must be in its space, 0.01 to 1; got 2.0'),
        ("0.01 }", "true }", 'tuning.points.sgd[0]."optimizer.lr" must be in its space, 0.01 to 1; got True'),
        ("sgd = [", "sdg = [", "unknown key tuning.points.sdg; did you mean tuning.points.sgd?"),
    ],
)
def test_listed_points_are_checked_against_the_space(tiny_text, old, new, message):
    assert old in POINTS
    with pytest.raises(StudyError) as caught:
        parse(tiny_text + TUNING + POINTS.replace(old, new), "tiny")
    assert message in str(caught.value)


def test_an_arm_may_have_a_multiple_of_the_tuned_rate(tiny_text):
    text = tiny_text.replace("optimizer = { lr = 0.3 }", 'lr_factor = 3\ntuning = "baseline"')
    text += TUNING.partition("[tuning.arms")[0]
    setting = parse(text, "tiny").setting("", "directed", {"optimizer.lr": 0.25})
    assert setting.optimizer.lr == 0.75
    assert "lr_factor" not in json.dumps(as_json(setting))  # what a record holds is the rate itself
    with pytest.raises(StudyError, match=r"arms.directed.lr_factor must be a positive number; got 0"):
        parse(text.replace("lr_factor = 3", "lr_factor = 0"), "tiny")
    for factor, rate in (("1e-320", "0.0"), ("1e308", "inf")):  # times an end of the range
        changed = text.replace("lr_factor = 3", f"lr_factor = {factor}").replace("low = 0.01", "low = 1e-5")
        changed = changed.replace("high = 1.0", "high = 100.0")
        with pytest.raises(StudyError, match=rf"lr_factor = \S+ makes the learning rate \S+ {rate}, which"):
            parse(changed, "tiny")
        assert parse(changed, "tiny", stored=True)


@pytest.mark.parametrize(
    ("trials", "space", "message"),
    [
        ("2", "low = -1e308, high = 1e308", "so close to low = -1e+308 that high - low is finite"),
        (
            "1_000_000",
            "low = 0, high = 1",
            "tuning.trials must be an integer of at least 1 and at most 100000",
        ),
    ],
)
def test_a_search_that_could_not_be_drawn_is_refused(trials, space, message):
    """Over an infinite width every trial was the upper end; so many trials filled the memory."""
    text = (
        f'baseline = "a"\nentry = "mine:run"\nseeds = [5]\n[arms.a]\n[tuning]\ntrials = {trials}\nseeds = 2\n'
    )
    with pytest.raises(StudyError, match=re.escape(message)):
        parse(f"{text}[tuning.space]\nx = {{ {space} }}\n", "wide")


def test_the_most_seeds_of_a_study_that_may_end_early_are_bounded():
    text = 'baseline = "a"\nentry = "mine:run"\nseeds = { until = 1, most = 1_000_000_000 }\n[arms.a]\n'
    with pytest.raises(StudyError, match=r"seeds\.most must be an integer of at least 2 and at most 100000"):
        parse(text, "many")

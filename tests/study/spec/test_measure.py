"""The table ``[metric]``: what a study compares, and which direction is better."""

import math

import pytest

from cdgrad.study import StudyError
from cdgrad.study.plan import Plan
from cdgrad.study.spec import ERROR, Measure, parse

ENTRY = """
baseline = "a"
seeds = 2
entry = "mine:run"
[arms.a]
[arms.b]
[arms.c]
"""
PERPLEXITY = '[metric]\nname = "perplexity"\ndirection = "min"\n'


def test_without_the_table_a_setting_is_what_it_was():
    # The fingerprint is that of the version before the table existed.
    setting = parse(ENTRY, "own").setting("", "a")
    assert setting.fingerprint == "f44f6192ad41bfe5351a2d190c3f2e4b0bc79400277cfa45576f674f7dfe41b2"
    assert parse(ENTRY, "own").measure is ERROR


def test_another_metric_is_another_setting_but_its_direction_and_unit_are_words():
    def fingerprint(table):
        return parse(ENTRY + table, "own").setting("", "a").fingerprint

    plain = fingerprint(PERPLEXITY)
    assert plain != fingerprint("")
    assert plain != fingerprint(PERPLEXITY.replace("perplexity", "loss"))
    assert plain != fingerprint(PERPLEXITY + "percent = true\n")
    assert plain == fingerprint(PERPLEXITY.replace("min", "max"))
    assert plain == fingerprint(PERPLEXITY + 'unit = "nats"\n')


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[metric]\nname = "auc"\n', "metric.direction is missing; it must be one of min, max"),
        (PERPLEXITY + 'units = "nats"\n', "unknown key metric.units; did you mean metric.unit?"),
        (PERPLEXITY.replace("min", "lower"), "metric.direction must be one of min, max; got 'lower'"),
        (PERPLEXITY.replace("perplexity", "a/b"), "metric.name must be 1 to 30 letters"),
        (PERPLEXITY.replace("perplexity", "Seed"), "metric.name must be 1 to 30 letters"),
        (PERPLEXITY.replace("perplexity", "curve.loss"), "nor one that begins with curve., epoch., measure."),
        (PERPLEXITY + 'percent = true\nunit = "nats"', "metric.unit must be empty where percent = true"),
        ('reference = "d"\n', "reference must be one of the arms: a, b, c; got 'd'"),
    ],
)
def test_a_table_that_cannot_be_is_refused(table, message):
    text = table + ENTRY if table.startswith("reference") else ENTRY + table
    with pytest.raises(StudyError, match="own: ") as error:
        parse(text, "own")
    assert message in str(error.value)


def test_the_built_in_loop_measures_error_or_accuracy_in_percent(tiny_text):
    accuracy = '[metric]\nname = "accuracy"\ndirection = "max"\n'
    assert parse(tiny_text + accuracy, "tiny").measure == Measure("accuracy", "max", percent=True)
    assert parse(tiny_text + accuracy + "percent = true\n", "tiny").measure.percent
    assert parse(tiny_text + '[metric]\nname = "error"\ndirection = "min"\n', "tiny").measure == ERROR
    for table in (PERPLEXITY, accuracy.replace("max", "min"), accuracy + 'unit = "nats"\n'):
        with pytest.raises(StudyError, match=r"measures name = \"error\" .* Give an entry that returns"):
            parse(tiny_text + table, "tiny")


def test_the_better_value_has_the_lower_cost_and_nan_the_highest():
    small, large = Measure("loss", "min"), Measure("AUC", "max")
    assert small.cost(1) < small.cost(2) < small.cost(math.nan)
    assert large.cost(2) < large.cost(1) < large.cost(math.nan)
    assert ERROR.value(None) == 100
    assert Measure("accuracy", "max", percent=True).value(math.inf) == 0
    assert math.isnan(small.value(None))


def test_every_other_arm_is_compared_with_the_reference_or_every_two_arms_once():
    def contrasts(head):
        return {name: (*contrast,) for name, contrast in parse(head + ENTRY, "own").contrasts.items()}

    assert contrasts("") == {"b": ("b", "a"), "c": ("c", "a")}
    assert contrasts('reference = "b"\n') == {"a": ("a", "b"), "c": ("c", "b")}
    assert contrasts("all_pairs = true\n") == {
        "b vs. a": ("b", "a"),
        "c vs. a": ("c", "a"),
        "c vs. b": ("c", "b"),
    }
    assert contrasts('reference = "c"\nall_pairs = true\n') == {
        "a vs. c": ("a", "c"),
        "b vs. c": ("b", "c"),
        "b vs. a": ("b", "a"),
    }


TUNED = ENTRY + "[tuning]\ntrials = 2\nseeds = [7]\nspace.x = { low = 0.0, high = 1.0 }\n"


@pytest.mark.parametrize("table", ["space", "arms.b"])
def test_two_names_of_one_value_are_refused(table):
    text = f'{TUNED}{table}."values.x" = {{ low = 2.0, high = 3.0 }}\n'
    with pytest.raises(
        StudyError,
        match=r"the values of trial 0 are not possible together for arm \w: x "
        r"and values\.x are one value of mine:run; leave one",
    ):
        Plan(parse(text, "own"), [], "runs")
    values = {"x": 0.5, "values.x": 2.5}
    with pytest.raises(StudyError, match=r"x and values\.x are one value"):
        parse(text, "own").setting("", "b", values)
    assert parse(text, "own", stored=True).setting("", "b", values).values == {"x": 2.5}  # as it was run


def test_a_value_may_have_the_name_of_an_option():
    values = {"values.lam": 3.0, "values.rescale": 2.0, "x": 1.0, "rescale": "norm"}
    setting = parse(ENTRY.replace("[arms.a]", "[arms.a]\nmetric = 'l2'"), "own", stored=True).setting(
        "", "a", values
    )
    assert setting.values == {"lam": 3.0, "rescale": 2.0, "x": 1.0}
    assert setting.rescale == "norm"

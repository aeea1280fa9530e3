"""The noise floor: an arm that is the baseline but for rounding is added, reported, and not tested."""

import dataclasses
import tomllib

import pytest

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.records import Store
from cdgrad.study.report.compose import document
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.tables import differences
from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.spec import load, parse, with_rounding
from cdgrad.study.statistics import Results

TUNED = """
[tuning]
trials = 2
seeds = [100]
[tuning.space]
optimizer.lr = { low = 0.01, high = 1.0, log = true }
"""


@pytest.fixture
def runs(make_run):
    errors = {"sgd": (3.0, 4.0), "rounded": (3.2, 3.9), "directed": (2.5, 4.5)}
    return [
        dataclasses.replace(make_run("sgd", seed, error), arm=arm)
        for arm, values in errors.items()
        for seed, error in enumerate(values)
    ]


def test_the_added_arm_is_the_baseline_but_for_rounding(tiny, tiny_text):
    study = with_rounding(tiny, 3)
    base, rounded = study.setting("", "sgd"), study.setting("", "rounded")
    assert dataclasses.replace(rounded, rounding=1) == base
    assert rounded.rounding == 3
    assert study.rounding_arms == ["rounded"]
    assert [*study.tested_contrasts] == ["directed"]
    assert parse(study.text, "tiny") == study  # the records keep the text
    assert with_rounding(study, 3) == study


def test_it_has_the_baseline_s_tuned_setting_and_options(tiny_text):
    text = tiny_text.replace("[arms.sgd]", "[arms.sgd]\ncentralize = true\noptimizer = { nesterov = true }")
    study = with_rounding(parse(text + TUNED, "tiny"), 2)
    arm = study.arms["rounded"]
    assert (arm.centralize, arm.optimizer, arm.tuning) == (True, {"nesterov": True}, "baseline")
    assert study.rounding_arms == ["rounded"]
    own = tiny_text.replace("[arms.sgd]", "[arms.rounded]\nrounding = 2\n\n[arms.sgd]") + TUNED
    assert parse(own, "tiny").rounding_arms == []  # it would search for a setting of its own


def test_of_a_baseline_that_rounds_otherwise_the_ordinary_arm_is_the_noise_floor(tiny_text):
    study = parse(tiny_text.replace("[arms.sgd]", "[arms.plain]\n[arms.sgd]\nrounding = 3"), "tiny")
    assert study.rounding_arms == [*study.noise_floor] == ["plain"]
    assert [*study.tested_contrasts] == ["directed"]


def test_values_of_every_kind_are_written_as_toml(tiny_text):
    odd = 'optimizer = { eps = 1e-8, name = "a:b", "a b" = ["\\"x\\"", 1, true], c = { d = -inf } }'
    text = tiny_text.replace("[arms.sgd]", f"[arms.sgd]\n{odd.replace('name', 'lr = 1, name')}")
    study = with_rounding(parse(text, "tiny"), 2)
    arms = tomllib.loads(study.text)["arms"]
    assert {**arms["rounded"], "rounding": 0} == {**arms["sgd"], "rounding": 0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[arms.sgd]", "[arms.sgd]\n[arms.rounded]\ncentralize = true", "the study has an arm of that name"),
        ("[arms.sgd]", "[arms.sgd]\nrounding = 3", "or a baseline that rounds so"),
        (None, "arms = { sgd = {}, d = { metric = 'reweighted:lam=3' } }\n", "write each as [arms.NAME]"),
    ],
)
def test_what_it_cannot_be_added_to(tiny_text, old, new, message):
    text = tiny_text.replace(old, new) if old else new + tiny_text.partition("[arms.sgd]")[0]
    with pytest.raises(StudyError) as caught:
        with_rounding(parse(text, "tiny"), 3)
    assert message in str(caught.value)


def test_the_report_prints_what_rounding_differs_by_and_tests_the_others_only(tiny, runs):
    study = with_rounding(tiny, 3)
    results = Results.of(study, runs)
    (said,) = [line for line in remarks(results) if "rounding" in line]
    assert "rounded is sgd with other rounding errors" in said
    assert "differs from it by 0.15 points in a seed" in said
    assert "the others differ from sgd by: directed 0.50" in said
    assert results.spec.tests == 1
    assert results.comparisons["", "directed"].p == results.comparisons["", "directed"].comparison.p
    assert len(verdicts(results, "")) == 1
    table = next(
        each for section in document(results).sections for each in section.tables if "Paired" in each.title
    )
    assert {row[0]: row[3] for row in table.rows} == {"directed": "1.000", "rounded": "-"}
    assert "rounded: the baseline with other rounding errors, not a test" in table.note


def test_among_all_pairs_the_arm_is_shown_and_neither_tested_nor_counted(tiny, runs):
    study = dataclasses.replace(with_rounding(tiny, 3), all_pairs=True)
    assert [*study.contrasts] == ["directed vs. sgd", "rounded vs. sgd", "rounded vs. directed"]
    assert ([*study.tested_contrasts], study.tests) == (["directed vs. sgd"], 1)
    assert [*study.noise_floor] == ["rounded vs. sgd"]
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
    with_the_copy = dataclasses.replace(study, all_pairs=False, reference="rounded")
    assert [*with_the_copy.tested_contrasts] == ["directed"]


@pytest.mark.usefixtures("no_workers", "no_figures")
def test_the_command_adds_the_arm_and_resumes(tmp_path, tiny_text, capsys):
    (tmp_path / "tiny.toml").write_text(tiny_text)
    command = ["study", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--rounding", "3"]
    for expected in (6, 6):
        assert cli.main(command) == 0
        with Store(tmp_path / "out", write=False) as store:
            assert len(store.runs()) == expected
    assert "other rounding errors" in " ".join(capsys.readouterr().out.split())
    assert load(str(tmp_path / "tiny.toml")).rounding_arms == []

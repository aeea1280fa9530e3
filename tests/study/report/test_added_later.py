"""What was added to a study after runs were recorded is reported: results may have been seen."""

import dataclasses

import pytest
from tiny_study import in_this_process

from cdgrad.study.records import Store
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import Measure, parse
from cdgrad.study.statistics.results import Results, read


def test_seeds_and_arms_that_joined_later_are_named(tiny, make_run):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in ("sgd", "directed") for seed in (0, 1)]
    before = dataclasses.replace(tiny, seeds=(0,), arms={"sgd": tiny.arms["sgd"]})
    sentences = " ".join(remarks(Results.of(tiny, runs, [before])))
    assert "1 seed (1) was added to a study with recorded runs of 1" in sentences
    assert "Arm directed was added after runs were recorded" in sentences
    assert "joined" not in " ".join(remarks(Results.of(tiny, runs)))


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        ({}, "Cell wide was added after runs were recorded: the choice to add it"),
        (
            {"margin": 0.2},
            r"margin = 0.5 was set after runs were recorded (it was 0.2): equivalence is shown only",
        ),
        ({}, r"margin = 0.5 was set after runs were recorded (there was none): equivalence"),
        ({"reference": "directed", "margin": 0.5}, "were to be compared with directed, and after runs were"),
    ],
)
def test_a_comparison_that_was_changed_later_is_named(tiny, make_run, planned, message):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in tiny.arms for seed in (0, 1)]
    before = dataclasses.replace(tiny, **planned)
    now = dataclasses.replace(tiny, margin=0.5, cells=tiny.cells | {"wide": tiny.cells[""]})
    assert message in " ".join(remarks(Results.of(now, runs, [before])))
    assert "after runs were recorded" not in " ".join(remarks(Results.of(now, runs, [now])))


def test_recorded_cells_that_the_specification_leaves_out_are_named(tiny, make_run):
    runs = [
        make_run(arm, seed, 5.0 + seed, cell=cell)
        for arm in tiny.arms
        for seed in (0, 1)
        for cell in ("", "b")
    ]
    assert "Recorded but left out of this report: cell b." in remarks(Results.of(tiny, runs))


def test_an_earlier_specification_that_cannot_be_read_is_counted(tmp_path, tiny, tiny_text, make_run):
    with Store(tmp_path, write=True) as store:
        store.add(make_run("sgd", 0, 3.0), store.use_spec("tiny", "of another version"))
        store.add(make_run("sgd", 1, 3.0), store.use_spec("tiny", tiny_text))
    said = " ".join(remarks(read(tmp_path)))
    assert "1 earlier specification of this study cannot be read by this version of cdgrad" in said
    assert "cannot be read" not in " ".join(remarks(Results.of(tiny, [make_run("sgd", 0, 3.0)])))


def test_a_stepwise_study_leaves_the_trace_in_its_store(tmp_path, tiny_text):
    assert "seeds = 2" in tiny_text
    for seeds in (1, 2):
        study = parse(tiny_text.replace("seeds = 2", f"seeds = {seeds}"), "tiny")
        run_study(study, tmp_path, 1, in_this_process)
    results = read(tmp_path)
    assert [len(spec.seeds) for spec in results.earlier] == [1]
    assert "1 seed (1) was added to a study" in " ".join(remarks(results))


def test_one_comparison_has_p_and_several_have_the_p_of_holm(tiny, make_run):
    runs = [make_run(arm, seed, 5.0 + seed * k) for k, arm in enumerate(tiny.arms) for seed in (0, 1)]
    (sentence,) = verdicts(Results.of(tiny, runs), "")
    assert ", p = " in sentence
    three = dataclasses.replace(tiny, arms=tiny.arms | {"more": tiny.arms["sgd"]})
    runs += [dataclasses.replace(make_run("sgd", seed, 4.0 + seed / 3), arm="more") for seed in (0, 1)]
    assert all(", Holm p = " in sentence for sentence in verdicts(Results.of(three, runs), ""))


def test_what_was_planned_is_the_first_specification_though_it_was_used_again(tmp_path, make_run):
    with Store(tmp_path, write=True) as store:
        store.add(make_run("sgd", 0, 3.0), store.use_spec("tiny", "planned"))
        store.add(make_run("sgd", 1, 3.0), store.use_spec("tiny", "extended"))
        store.use_spec("tiny", "planned")
        store.use_spec("tiny", "extended, with a comment")
        assert [text for _, text in store.earlier_specs()] == ["planned", "extended"]
        store.use_spec("tiny", "planned")
        assert store.earlier_specs() == []


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        ({"seeds": (0, 1, 2)}, "The number of seeds was reduced from 3 to 2 after runs were recorded"),
        ({"seeds": (0, 1, 2), "until": 0.5}, "its number of seeds was fixed after runs were recorded"),
        ({"measure": Measure("error", "max", percent=True)}, "error: large values were the better ones, and"),
    ],
)
def test_an_end_or_a_direction_that_was_chosen_later_is_named(tiny, make_run, planned, message):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in tiny.arms for seed in (0, 1)]
    assert message in " ".join(remarks(Results.of(tiny, runs, [dataclasses.replace(tiny, **planned)])))


def test_all_pairs_that_were_chosen_later_are_named(tiny, make_run):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in tiny.arms for seed in (0, 1)]
    now = dataclasses.replace(tiny, all_pairs=True)
    message = "The arms were to be compared with sgd, and after runs were recorded in all pairs"
    assert message in " ".join(remarks(Results.of(now, runs, [tiny])))

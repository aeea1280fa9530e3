"""What was added to a study after runs were recorded is reported: results may have been seen."""

import dataclasses

from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.statistics.results import Results, read


def test_seeds_and_arms_that_joined_later_are_named(tiny, make_run):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in ("sgd", "directed") for seed in (0, 1)]
    before = dataclasses.replace(tiny, seeds=(0,), arms={"sgd": tiny.arms["sgd"]})
    found = " ".join(remarks(Results.of(tiny, runs, [before])))
    assert "1 seed (1) was added to a study with recorded runs of 1" in found
    assert "Arm directed was added after runs were recorded" in found
    assert "joined" not in " ".join(remarks(Results.of(tiny, runs)))


def test_a_stepwise_study_leaves_the_trace_in_its_store(tmp_path, tiny_text, monkeypatch):
    from cdgrad.study.run.driver import run_study
    from cdgrad.study.spec import parse

    assert "seeds = 2" in tiny_text
    for seeds in (1, 2):
        run_study(parse(tiny_text.replace("seeds = 2", f"seeds = {seeds}"), "tiny"), tmp_path, 1)
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

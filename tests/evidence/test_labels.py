"""What the page says of the gain at 40 % wrong labels follows the runs that repeat it."""

import re

import pytest

from cdgrad.study import spec
from cdgrad.study.records.run import Run
from cdgrad.study.statistics.results import Results
from evidence.build import labels
from evidence.build.loading import STUDIES, studies


def study(name, errors):
    """The study, finished, with the errors that `errors(arm, seed)` gives; the first trial is the best."""
    about = spec.load(str(STUDIES / f"{name}.toml"))
    runs = []
    for arm in about.arms:
        for seed in about.seeds:
            search = about.replicate(seed)
            values = about.tuning.points(arm, search)[0] if about.tuning else {}
            runs.append(run(arm, None, search, seed, errors(arm, seed), values))
        for search in range(about.replicates if about.tuning else 0):
            for trial, values in enumerate(about.tuning.points(arm, search)):
                seeds = about.tuning.seeds_of(search)
                runs += [run(arm, trial, search, seed, 10.0 + trial, values) for seed in seeds]
    return Results.of(about, runs)


def run(arm, trial, search, seed, error, values):
    evaluated = "test" if trial is None else "validation"
    unknown = {
        "epochs": [],
        "measures": {},
        "config": {},
        "fingerprint": "",
        "environment": {},
        "started": "",
    }
    known = {"cell": "", "arm": arm, "trial": trial, "replicate": search, "seed": seed, "error": error}
    return Run(**known, **unknown, status="ok", evaluated=evaluated, values=values, seconds=1.0)


def test_it_compares_the_same_settings_the_best_rates_and_the_searches(monkeypatch):
    errors = {"none": 20.0, "lr-0.0115": 19.0, "rw-0.02": 18.0, "rw-0.0168": 18.5, "divided": 18.0}

    def of_rates(arm, seed):
        return errors.get(arm, 30.0) + 0.125 * (-1) ** seed * (arm == "rw-0.02")

    def of_searches(arm, seed):
        return 20.0 - (arm == "reweighted") * (
            1 + (seed - 40) % 4
        )  # better by 1, 2, 3 and 4 points, search by search

    results = {
        name: [study(name, of)] for name, of in zip(labels.LABELS, (of_rates, of_searches), strict=True)
    }
    monkeypatch.setattr(
        labels,
        "studies",
        lambda names: [result for name in names for result in results.get(name) or studies([name])],
    )
    parts = labels.section()
    verdict = parts["labels_verdict"]
    assert "the difference to the tuned baseline is -2.00\u00a0±\u00a00.06 on 20 new seeds," in verdict
    assert re.search(r", -1\.41\s±\s\S+ over all 40;", verdict)  # 20 seeds of -0.81, 20 of -2
    assert "; with settings from 4 new searches it is -2.50\u00a0±\u00a02.05." in verdict
    assert "no difference is shown against" in verdict
    assert "divided by lam (+0.00\u00a0±\u00a00.06)." in verdict
    assert "the best of one minus the best of the other is -1.00\u00a0±\u00a00.06" in parts["labels_text"]
    assert "-1.00, -2.00, -3.00, -4.00 points" in parts["labels_text"]
    assert parts["labels_text"].count("| ordinary gradient |") == 4


def test_a_difference_to_the_control_is_refused_until_the_page_says_so(monkeypatch):
    rates = study("labels-rates", lambda arm, seed: 20.0 + 0.1 * (seed % 2) - 2 * (arm == "rw-0.02"))
    monkeypatch.setattr(
        labels, "studies", lambda names: [rates] if names == labels.LABELS else studies(names)
    )
    with pytest.raises(ValueError, match="differs from its control"):
        labels.section()


def test_what_was_not_run_is_said(monkeypatch):
    monkeypatch.setattr(labels, "studies", lambda names: [])
    parts = labels.section()
    assert "not run" in parts["labels_text"]
    assert parts["labels_verdict"] == "It was not repeated."

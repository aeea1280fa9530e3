"""What the page says of the gain at 40 % wrong labels follows the runs that repeat it."""

import pytest

from cdgrad.study import spec
from cdgrad.study.records.run import Run
from cdgrad.study.statistics.results import Results
from evidence.build import labels
from evidence.build.loading import STUDIES


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
    errors = {"none": 20.0, "lr-0.0115": 19.0, "rw-0.02": 18.0, "rw-0.0168": 18.5, "divided": 18.25}

    def of_rates(arm, seed):
        return errors.get(arm, 30.0) + 0.125 * (-1) ** seed * (arm == "rw-0.02")

    def of_searches(arm, seed):
        return 20.0 - (arm == "reweighted") * (
            1 + (seed - 40) % 4
        )  # better by 1, 2, 3 and 4 points, search by search

    made = [study("labels-rates", of_rates), study("labels-again", of_searches)]
    monkeypatch.setattr(labels, "studies", lambda names: made)
    parts = labels.section()
    reach = "\u00a0±\u00a00.09"
    assert parts["labels_verdict"] == (
        f"On 10 new seeds the same two settings differ by -2.00{reach} points, and the best of four learning "
        f"rates of each method by -1.00{reach}; over 4 searches anew the difference is "
        "-2.50\u00a0±\u00a02.05."
    )
    assert f"is -0.25{reach} points" in parts["labels_text"]
    assert "-1.00, -2.00, -3.00, -4.00 points" in parts["labels_text"]
    assert parts["labels_text"].count("| ordinary gradient |") == 4


@pytest.mark.parametrize(("made", "verdict"), [((), "It was not repeated."), (("labels-rates",), "points.")])
def test_what_was_not_run_is_said(made, verdict, monkeypatch):
    monkeypatch.setattr(
        labels, "studies", lambda names: [study(n, lambda arm, seed: 1.0 * seed) for n in made]
    )
    parts = labels.section()
    assert "not run" in parts["labels_text"]
    assert parts["labels_verdict"].endswith(verdict) or "by +0.00" in parts["labels_verdict"]

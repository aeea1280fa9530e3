"""The user's own training code: what it gets, what may come back, and a study of it like any other."""

import dataclasses
import math
import os
import random
import sys
from argparse import ArgumentParser

import numpy as np
import pytest
import torch
from torch import nn

from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.records import Store
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import parse
from cdgrad.study.train import entry as entries
from cdgrad.study.train.entry import run_entry

TEXT = """
baseline = "sgd"
seeds = 2
entry = "{module}:run"

[arms.sgd]
values = {{ lr = 0.1, net.width = 4 }}

[arms.directed]
metric = "reweighted:lam=3"
values.lr = 0.3
"""
CODE = """
import torch

def run(seed, arm):
    torch.manual_seed(seed)
    net = torch.nn.Conv2d(1, 4, 3)
    images = torch.randn(8, 1, 6, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=arm.values["lr"])
    arm.attach(optimizer, net)
    for epoch in range(1, 4):
        optimizer.zero_grad()
        loss = net(images).square().mean()
        loss.backward()
        optimizer.step()
        arm.report(epoch, loss=loss.item())
    return {"error": 100 * loss.item(), "steps": 3}
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "mytrain.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return parse(TEXT.format(module="mytrain"), "mine")


def entry(function):
    """The setting of an entry that is defined in this file."""
    entry.function = function
    return parse(TEXT.format(module=__name__), "mine")


def run(seed, arm):
    return entry.function(seed, arm)


def ran(function, arm="sgd", seed=3, on_epoch=lambda epoch, measured: None, **changes):
    setting = dataclasses.replace(entry(function).setting("", arm), **changes)
    return run_entry(arm, setting, seed, on_epoch)


def test_the_code_gets_the_seed_and_the_arm():
    def function(seed, arm):
        assert (seed, arm.name, arm.evaluate) == (3, "sgd", "test")
        assert arm.values == {"lr": 0.1, "net.width": 4}
        return {"error": 5}

    assert ran(function).error == 5.0


def test_attach_does_what_the_arm_says():
    def function(seed, arm):
        net = nn.Conv2d(1, 4, 3)
        handle = arm.attach(torch.optim.SGD(net.parameters(), lr=0.1), net)
        return {"error": 0.0, "attached": handle is not None and str(handle.metric) == "reweighted:lam=3"}

    assert ran(function).measures == {"attached": 0.0}
    assert ran(function, "directed").measures == {"attached": 1.0}


def test_reports_become_epochs_and_further_numbers_measures():
    def function(seed, arm):
        arm.report(1, loss=2)
        arm.report(2, loss=torch.tensor(1.5), validation_error=np.float32(0.5))
        return {"error": torch.tensor(12.5), "top5": 1.0}

    seen = []
    outcome = ran(function, on_epoch=lambda epoch, measured: seen.append((epoch, measured)))
    assert outcome.epochs == [{"loss": 2.0}, {"loss": 1.5, "validation_error": 0.5}]
    assert seen == list(enumerate(outcome.epochs, 1))
    assert (outcome.status, outcome.error, outcome.measures) == ("ok", 12.5, {"top5": 1.0})


def test_values_that_are_never_read_are_recorded():
    outcome = ran(lambda seed, arm: {"error": 1.0}, "sgd")
    assert outcome.environment == {"unread": ["lr", "net.width"]}
    for read in (lambda v: v["lr"], lambda v: 1 * ("lr" in v), lambda v: v.setdefault("lr", 1)):
        one = ran(lambda seed, arm, read=read: {"error": read(arm.values)}, "sgd")
        assert one.environment == {"unread": ["net.width"]}
    assert ran(lambda seed, arm: {"error": len(dict(arm.values))}, "sgd").environment == {}


def test_a_diverged_run_says_so():
    outcome = ran(lambda seed, arm: {"error": 100.0, "diverged": True})
    assert (outcome.status, outcome.error, outcome.measures) == ("diverged", 100.0, {})


def test_the_generators_are_seeded_and_torchs_restored():
    def function(seed, arm):
        legacy = np.random.rand()  # noqa: NPY002, what users' code may call
        return {"error": 0, "torch": torch.rand(()), "numpy": legacy, "random": random.random()}

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = ran(function), ran(function, "sgd"), ran(function, seed=4)
    assert torch.equal(torch.rand(3), expected)
    assert first.measures == again.measures
    assert all(first.measures[key] != other.measures[key] for key in first.measures)


@pytest.mark.parametrize(
    ("arm", "function", "message"),
    [
        ("sgd", lambda seed, arm: 3.0, r'must return a dict with "error" in percent; got 3.0'),
        ("sgd", lambda seed, arm: {"loss": 3.0}, r'must return a dict with "error"'),
        ("sgd", lambda seed, arm: {"error": "low"}, ": error must be a number, got 'low'"),
        ("sgd", lambda seed, arm: {"error": math.nan}, "returned error nan; a diverged run is a result"),
        ("sgd", lambda seed, arm: arm.report(2, loss=1), "expects epoch 1 next, counted from 1; got 2"),
        ("sgd", lambda seed, arm: arm.report(1, loss="x"), "arm.report: loss must be a number, got 'x'"),
        (
            "sgd",
            lambda seed, arm: {"error": 100.5},
            "returned error 100.5; it is in percent, between 0 and 100",
        ),
        ("sgd", lambda seed, arm: {"error": -1}, "returned error -1; it is in percent"),
        ("sgd", lambda seed, arm: sys.exit(2), r"ended the process \(exit status 2\); return a dict and"),
        ("sgd", lambda seed, arm: ArgumentParser().parse_args(["--x"]), "ended the process"),
        ("directed", lambda seed, arm: {"error": 1}, r"never called arm.attach\(optimizer, model\)"),
    ],
)
def test_what_cannot_be_a_run_is_explained(arm, function, message):
    with pytest.raises(StudyError, match=message):
        ran(function, arm)


def test_the_fingerprint_covers_the_entry_and_the_values(spec):
    setting = spec.setting("", "sgd")
    others = [dataclasses.replace(setting, **c) for c in ({"entry": "other:run"}, {"values": {"lr": 0.2}})]
    assert len({s.fingerprint for s in (setting, *others, spec.setting("", "directed"))}) == 4


def test_a_study_of_it_is_a_study_like_any_other(spec, tmp_path):
    executed = run_study(spec, tmp_path / "out", workers=1)
    assert [run.status for run in executed] == ["ok"] * 4
    assert {(len(run.epochs), run.measures["steps"]) for run in executed} == {(3, 3.0)}
    assert run_study(spec, tmp_path / "out", workers=1) == []
    with Store(tmp_path / "out", write=False) as store:
        kept = store.runs()
    again = execute(Job("", "directed", None, 1, spec.setting("", "directed")), lambda epoch, measured: None)
    assert again in kept
    # The pair of a seed starts from the same network and images.
    losses = {run.arm: run.epochs[0]["loss"] for run in kept if run.seed == 1}
    assert losses["sgd"] == losses["directed"]


def test_the_command_line_of_the_study_is_not_the_codes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cdgrad", "study", "x.toml"])

    def function(seed, arm):
        ArgumentParser().parse_args()
        return {"error": 1}

    assert ran(function).error == 1
    assert sys.argv == ["cdgrad", "study", "x.toml"]


TUNED = """
[tuning]
trials = 2
seeds = [10]
space = {{ {key} = {{ low = 0.01, high = 0.1 }} }}
"""


@pytest.mark.parametrize("key", ["lr", '"values.lr"', "values.lr"])
def test_a_tuned_value_is_read_with_or_without_its_table(spec, key):
    tuned = parse(spec.text + TUNED.format(key=key), "mine")
    values = tuned.tuning.points("sgd")[0]
    assert tuned.setting("", "sgd", values).values["lr"] == next(iter(values.values()))
    job = Job("", "sgd", 0, 10, tuned.setting("", "sgd", values, trial=True), values)
    assert execute(job, lambda epoch, measured: None).status == "ok"


@pytest.mark.parametrize("key", ["dd", '"optimizer.lr"'])
def test_tuning_a_value_that_the_code_does_not_read_is_refused(spec, key):
    tuned = parse(spec.text + TUNED.format(key=key), "mine")
    values = tuned.tuning.points("sgd")[0]
    run = execute(Job("", "sgd", 0, 10, tuned.setting("", "sgd", values, trial=True), values), print)
    assert run.status == "failed"
    assert "so that tuning it changes nothing; it read lr; did you mean 'lr'?" in run.message


@pytest.mark.parametrize(
    "read",
    [
        dict,
        lambda v: {**v},
        lambda v: v | {},
        lambda v: list(v.items()),
        lambda v: v.get("lr"),
        lambda v: v.copy(),
    ],
)
def test_every_way_of_reading_counts(read):
    from cdgrad.study.train.entry import ReadValues

    values = ReadValues({"lr": 0.1})
    read(values)
    values.check("mine:run", {"lr"})
    with pytest.raises(StudyError, match="never read"):
        ReadValues({"lr": 0.1}).check("mine:run", {"lr"})


def test_what_a_run_changes_of_its_process_is_as_before_for_the_next_one(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    changes = "torch.set_default_dtype(torch.float64); torch.set_num_threads(2); os.chdir('below')"
    code = CODE.replace("def run(seed, arm):", f"def run(seed, arm):\n    {changes}")
    (tmp_path / "mytrain.py").write_text(f"import os\n{code}")
    job = Job("", "sgd", None, 0, spec.setting("", "sgd"))
    before = torch.get_default_dtype(), torch.get_num_threads(), os.getcwd()
    for _ in range(2):  # in a folder that is below the first one's only
        run = execute(job, lambda epoch, measured: None)
        assert (run.status, run.message) == ("ok", "")
        assert (torch.get_default_dtype(), torch.get_num_threads(), os.getcwd()) == before


def test_a_network_without_anything_to_direct_is_refused():
    def function(seed, arm):
        net = nn.Conv2d(1, 4, 3).requires_grad_(False)
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1)), *net.parameters()], lr=0.1)
        arm.attach(optimizer, net)
        return {"error": 1}

    with pytest.raises(StudyError, match="has nothing to direct in this network"):
        ran(function, "directed")


@pytest.mark.parametrize("returned", [41.5, torch.tensor(41.5), {"perplexity": 41.5}])
def test_a_study_with_a_metric_takes_a_number_or_a_dict_with_its_name(returned):
    outcome = ran(lambda seed, arm: returned, measure="perplexity", percent=False)
    assert (outcome.error, outcome.measures) == (41.5, {})


@pytest.mark.parametrize(
    ("returned", "percent", "message"),
    [
        (
            {"perplexty": 3},
            False,
            r"must return a dict with .*; rename 'perplexty' to 'perplexity'",
        ),
        ("41.5", False, 'must return a dict with "perplexity"; got'),
        (None, True, 'must return a dict with "perplexity" in percent; got None'),
        (math.inf, False, "a diverged run is a result: return the value of an untrained model"),
        (141.5, True, r"between 0 and 100; for another kind of number, set percent = false in \[metric\]"),
    ],
)
def test_what_is_not_the_metric_is_refused(returned, percent, message):
    with pytest.raises(StudyError, match=message):
        ran(lambda seed, arm: returned, measure="perplexity", percent=percent)


def test_the_parameters_of_an_attached_model_are_recorded():
    def function(seed, arm):
        net = nn.Conv2d(1, 4, 3)
        arm.attach(torch.optim.SGD(net.parameters(), lr=0.1), net)
        return {"error": 5.0}

    assert ran(function).columns == {"parameters": 40}
    assert ran(lambda seed, arm: {"error": 5.0}).columns == {}


class Refuses:
    def __float__(self):
        raise RuntimeError("no number")


@pytest.mark.parametrize("value", ["12.5", b"1", 10**400, torch.ones(2), Refuses()], ids=range(5))
def test_what_is_no_number_is_named(value):
    with pytest.raises(StudyError, match=r"^mine:run: error must be a number, got "):
        entries._numbers({"error": value}, "mine:run")


def test_an_epoch_may_be_a_number_of_numpys():
    """The worker sends it to the driver, which took anything but an int for the run."""
    sent = []
    setting = parse('baseline = "a"\nseeds = 1\nentry = "mine:run"\narms.a = {}', "numpy").setting("", "a")
    arm = entries.EntryArm("a", setting, 0, lambda epoch, _: sent.append(epoch))
    for epoch in np.arange(1, 3):
        arm.report(epoch, loss=np.float32(1))
    assert [type(epoch) for epoch in sent] == [int, int]

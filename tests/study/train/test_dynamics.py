"""What is measured along training changes nothing, and is right where the answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from cdgrad.study import StudyError, data
from cdgrad.study.spec import Model, parse
from cdgrad.study.train import dynamics
from cdgrad.study.train.loop import train
from cdgrad.study.train.ranks import Ranks


def dropout_network(image_shape, classes):
    layers = nn.Conv2d(image_shape[0], 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten()
    network = nn.Sequential(*layers, nn.LazyLinear(classes))
    network(torch.zeros(2, *image_shape))
    return network


def linear_network(image_shape, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * image_shape[0], classes))


@pytest.fixture
def setting(tiny):
    def make(*diagnostics, arm="directed", network="dropout_network", **changes):
        base = tiny.setting("", arm)
        longer = dataclasses.replace(base.schedule, epochs=4, diagnostics=diagnostics)
        model = Model(f"{__name__}:{network}")
        return dataclasses.replace(base, **({"schedule": longer, "model": model} | changes))

    return make


def run(setting, **options):
    return train(setting, 0, lambda epoch, measured: None, **options)


def assert_same(a, b):
    assert (a.error, a.epochs) == (b.error, b.epochs)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_measuring_changes_no_number_of_the_run(setting):
    plain, measured = run(setting()), run(setting("divergence", "sharpness"))
    new = {"divergence", "sharpness", "sharpness_times_lr"}
    for epoch in measured.epochs:
        assert new <= epoch.keys()
        for key in new:
            del epoch[key]
    assert_same(measured, plain)


def test_the_divergence_is_that_of_rounding(setting, monkeypatch):
    divergences = [epoch["divergence"] for epoch in run(setting("divergence")).epochs]
    assert all(0 < value < 1e-3 for value in divergences)
    monkeypatch.setattr(dynamics, "_rounded", lambda state: setting())  # a copy that rounds as the run does
    assert [epoch["divergence"] for epoch in run(setting("divergence")).epochs] == [0.0] * 4


@pytest.mark.parametrize("rounding", [1, 3])
def test_the_copy_rounds_otherwise_than_the_run(setting, rounding):
    epochs = run(setting("divergence", rounding=rounding)).epochs
    assert epochs[0]["divergence"] > 0


def test_the_sharpness_is_the_largest_eigenvalue_of_the_hessian(setting):
    changed = setting("sharpness", arm="sgd", network="linear_network")
    outcome = run(changed)
    split, model = data.load(changed.task, 0).train, outcome.model
    names, weights = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)
    sizes = [weight.numel() for weight in weights]

    def loss(vector):
        parts = [part.view(w.shape) for part, w in zip(vector.split(sizes), weights, strict=True)]
        return cross_entropy(
            functional_call(model, dict(zip(names, parts, strict=True)), split.images()), split.labels
        )

    dense = hessian(loss)(torch.cat([weight.flatten() for weight in weights]).double().float())
    largest = float(torch.linalg.eigvalsh(dense.double())[-1])
    last = outcome.epochs[-1]
    assert last["sharpness"] == pytest.approx(largest, rel=1e-2)
    assert last["sharpness_times_lr"] == pytest.approx(largest * last["lr"], rel=1e-2)


def test_a_killed_run_resumes_its_measurements(setting, tmp_path):
    whole = run(setting("divergence", "sharpness"))

    def on_epoch(epoch, measured):
        if epoch > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(setting("divergence", "sharpness"), 0, on_epoch, checkpoint=tmp_path / "run.pt", every=0)
    assert_same(run(setting("divergence", "sharpness"), checkpoint=tmp_path / "run.pt"), whole)


def test_the_key_is_a_list_of_known_names_and_changes_no_old_fingerprint(tiny, tiny_text):
    text = tiny_text.replace("epochs = 1", 'epochs = 1\ndiagnostics = ["sharpness"]')
    changed = parse(text, "tiny").setting("", "sgd")
    assert changed.schedule.diagnostics == ("sharpness",)
    assert changed.fingerprint != tiny.setting("", "sgd").fingerprint
    with pytest.raises(
        StudyError, match=r"schedule\.diagnostics must be a list of different ones of divergence, s"
    ):
        parse(text.replace("sharpness", "flatness"), "tiny")


def test_several_ranks_measure_nothing(setting, monkeypatch):
    state = dataclasses.make_dataclass("State", ["ranks"])(Ranks(0, 2, "ddp"))
    with pytest.raises(StudyError, match=r"schedule\.diagnostics needs one process"):
        dynamics.Dynamics(state, 0)

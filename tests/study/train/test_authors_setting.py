"""What the claim was made with: shortcuts, initialization, decay, and choices by the test set."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cdgrad.study import StudyError, models
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.spec import load, parse
from cdgrad.study.spec.setting import Schedule, as_json
from cdgrad.study.train.loop import selected_errors, train
from cdgrad.study.train.schedule import rate_factor, step_with_rounding

SHAPE = (3, 32, 32)


def trained(setting, seed=0):
    return train(setting, seed, lambda epoch, measured: None)


def parameters(name, **arguments):
    return sum(p.numel() for p in models.build(name, SHAPE, 10, arguments).parameters())


@pytest.mark.parametrize(("depth", "millions"), [(32, 0.46), (44, 0.66)])
def test_the_depths_between_have_the_parameters_of_the_paper(depth, millions):
    assert round(parameters(f"resnet{depth}") / 1e6, 2) == millions  # table 6


def test_a_projection_adds_two_convolutions_with_batch_norm():
    added = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert parameters("resnet20", shortcut="projection") == parameters("resnet20") + added
    model = models.build("resnet20", SHAPE, 10, {"shortcut": "projection"})
    assert model(torch.zeros(2, *SHAPE)).shape == (2, 10)
    assert [tuple(m.weight.shape) for m in model.modules() if getattr(m, "kernel_size", 0) == (1, 1)] == [
        (32, 16, 1, 1),
        (64, 32, 1, 1),
    ]
    with pytest.raises(StudyError, match='shortcut must be "pad" or "projection"; got \'zeros\''):
        models.build("resnet20", SHAPE, 10, {"shortcut": "zeros"})


def test_fan_out_draws_with_variance_two_over_k_k_o():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 200, 3), nn.ConvTranspose2d(200, 50, 5), nn.Linear(3, 3))
    linear = model[2].weight.clone()
    models.initialize_fan_out(model)
    for layer, kernel in ((model[0], 9), (model[1], 25)):
        weight = layer.weight.detach()
        assert float(weight.var()) == pytest.approx(2 / (kernel * layer.out_channels), rel=0.03)
        assert float(weight.mean()) == pytest.approx(0, abs=1e-3)
        assert not layer.bias.any()
    assert torch.equal(model[2].weight, linear)


def test_the_initialization_reaches_the_network_and_is_the_same_in_all_arms(tiny):
    whole = dataclasses.replace(tiny.setting("", "sgd"), schedule=Schedule(1, 48))
    other = dataclasses.replace(whole, model=dataclasses.replace(whole.model, initialization="fan-out"))
    loss = trained(other).epochs[0]["loss"]
    assert loss != trained(whole).epochs[0]["loss"]
    assert loss == trained(dataclasses.replace(other, metric="reweighted:lam=3")).epochs[0]["loss"]


def test_steps_divide_the_learning_rate_at_fixed_epochs():
    schedule = Schedule(200, 128, decay="steps", step_epochs=40, step_factor=0.1)
    rates = [rate_factor(schedule, epoch * 7 + 3, 7) for epoch in range(200)]
    assert rates == pytest.approx([0.1 ** (epoch // 40) for epoch in range(200)])
    warm = dataclasses.replace(schedule, warmup=5)
    assert rate_factor(warm, 0, 7) == pytest.approx(1 / 35)
    assert rate_factor(warm, 40 * 7, 7) == pytest.approx(0.1)


@pytest.mark.parametrize("table", ['decay = "steps"', "step_epochs = 3"])
def test_steps_and_their_length_belong_together(tiny_text, table):
    with pytest.raises(StudyError, match=r"decay = .steps. and step_epochs need each other"):
        parse(tiny_text.replace("batch = 16", f"batch = 16\n{table}"), "tiny")


def test_choices_by_the_test_set_stand_beside_the_last_error(tiny):
    schedule = Schedule(12, 16, test_every_epoch=True)
    setting = dataclasses.replace(tiny.setting("", "sgd"), schedule=schedule)
    outcome = trained(setting)
    errors = [epoch["test_error"] for epoch in outcome.epochs]
    assert outcome.error == errors[-1]
    assert outcome.measures == {
        "best_epoch_test_error": min(errors),
        "last_ten_epochs_test_error": pytest.approx(sum(errors[2:]) / 10),
    }
    plain = trained(dataclasses.replace(setting, schedule=Schedule(12, 16)))
    assert plain.error == outcome.error
    assert plain.measures == {}
    assert "test_error" not in plain.epochs[0]


def test_a_run_that_evaluates_validation_images_never_measures_test_errors(tiny):
    schedule = Schedule(1, 16, test_every_epoch=True)
    outcome = trained(dataclasses.replace(tiny.setting("", "sgd"), schedule=schedule, evaluate="validation"))
    assert "test_error" not in outcome.epochs[0]
    assert outcome.measures == {}


def test_selected_errors_of_a_known_curve():
    epochs = [{"test_error": error} for error in (9.0, 1.0, *[5.0] * 9, 6.0)]
    assert selected_errors(epochs) == {
        "best_epoch_test_error": 1.0,
        "last_ten_epochs_test_error": pytest.approx(5.1),
    }


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rounded_step_is_the_same_in_exact_arithmetic_and_not_in_float32(name):
    make, options = OPTIMIZERS[name]
    differences = {}
    for dtype in (torch.float64, torch.float32):
        weights = []
        for k in (1, 3):
            torch.manual_seed(0)
            w = nn.Parameter(torch.randn(1000, dtype=dtype))
            target = torch.randn(1000, dtype=dtype)
            optimizer = make([w], lr=0.01 * k, **options)
            for _ in range(20):
                optimizer.zero_grad()
                ((w - target) ** 2).sum().backward()
                step_with_rounding(optimizer, k)
            weights.append(w.detach().double())
        differences[dtype] = float((weights[0] - weights[1]).abs().max())
    assert differences[torch.float64] < 1e-14
    assert 1e-8 < differences[torch.float32] < 1e-5


def test_a_rounded_arm_begins_as_the_baseline_and_leaves_it_by_rounding(tiny_text):
    text = tiny_text.replace("[arms.directed]", "[arms.rounded]\nrounding = 3\n\n[arms.directed]")
    spec = parse(text.replace("epochs = 1", "epochs = 3"), "tiny")
    base, rounded = (trained(spec.setting("", arm)) for arm in ("sgd", "rounded"))
    assert base.epochs[0]["loss"] == pytest.approx(rounded.epochs[0]["loss"], rel=1e-5)
    assert base.epochs[0]["lr"] == rounded.epochs[0]["lr"]
    pairs = list(zip(base.model.parameters(), rounded.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)


def test_an_entry_has_no_rounded_step():
    text = 'entry = "a:b"\nbaseline = "x"\nseeds = 2\n[arms.x]\nrounding = 2\n'
    with pytest.raises(
        StudyError, match=r"arms.x.rounding has no effect with `entry`, only in the built-in loop"
    ):
        parse(text, "mine")


def test_new_keys_at_their_defaults_leave_fingerprints_as_they_were(tiny):
    spec = load("quickstart")
    assert spec.setting("", "sgd").fingerprint.startswith("c51350c222c3a7fa")
    assert spec.setting("", "reweighted").fingerprint.startswith("35c9e563ea26196c")
    kept = json.dumps(as_json(tiny.setting("", "sgd")))
    for key in ("rounding", "initialization", "step_epochs", "step_factor", "test_every_epoch"):
        assert key not in kept
    changed = dataclasses.replace(tiny.setting("", "sgd"), rounding=3)
    assert as_json(changed)["rounding"] == 3
    assert changed.fingerprint != tiny.setting("", "sgd").fingerprint


@pytest.mark.parametrize("name", ["controls", "tiny-imagenet-50"])
def test_committed_records_keep_their_fingerprints(name):
    root = Path(__file__).parents[3]
    spec = load(str(root / f"evidence/studies/{name}.toml"))
    runs = from_parquet(root / f"evidence/records/{name}.parquet")
    for run in runs[:: len(runs) // 20]:
        setting = spec.setting(run.cell, run.arm, run.values, trial=run.trial is not None)
        assert setting.fingerprint == run.fingerprint

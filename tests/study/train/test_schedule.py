"""Every option of the schedule does what it says, and the same in all arms."""

import copy
import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from cdgrad.study import data, models
from cdgrad.study.spec import Model, Optimizer, Schedule, Task
from cdgrad.study.train.average import MovingAverage
from cdgrad.study.train.loop import train
from cdgrad.study.train.schedule import rate_factor

SEEN = []  # what the networks below were given: (training, number of images, dtype, channels-last)


class Watched(nn.Module):
    """A network without batch norm, so that a batch is the sum of its parts; it notes what it gets."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, images):
        hidden = self.conv(images)
        layout = images.is_contiguous(memory_format=torch.channels_last)
        layout = layout and self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        SEEN.append((self.training, len(images), hidden.dtype, layout))
        return self.head(hidden.relu().mean((2, 3)))


class Recording(torch.optim.SGD):
    """SGD that notes the learning rate of its steps, and the norm of the gradients that it takes."""

    rates: ClassVar = []
    norms: ClassVar = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        self.norms.append(float(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).norm()))
        return super().step(closure)


@pytest.fixture
def run(tiny):
    """Train 48 images in 3 steps an epoch with changes to the schedule."""

    def make(metric="none", lr=0.1, optimizer="torch.optim:SGD", **changes):
        SEEN.clear()
        setting = dataclasses.replace(
            tiny.setting("", "sgd"),
            metric=metric,
            model=Model(f"{__name__}:Watched"),
            optimizer=Optimizer(optimizer, lr),
            schedule=Schedule(**({"epochs": 2, "batch": 16} | changes)),
        )
        return train(setting, 0, lambda epoch, measured: None)

    return make


def weights(outcome):
    return torch.cat([p.detach().flatten() for p in outcome.model.parameters()])


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    schedule = Schedule(epochs=5, batch=1, warmup=2)
    factors = [rate_factor(schedule, step, 4) for step in range(20)]
    assert factors[:8] == [n / 8 for n in range(1, 9)]
    assert factors[8] == 1.0
    assert factors[14] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx((1 + math.cos(math.pi * 11 / 12)) / 2)
    kept = dataclasses.replace(schedule, decay="none")
    assert [rate_factor(kept, step, 4) for step in range(7, 20)] == [1.0] * 13


@pytest.mark.parametrize("changes", [{}, {"decay": "none"}, {"warmup": 1}])
def test_training_follows_the_rate(run, changes):
    Recording.rates.clear()
    epochs = run(optimizer=f"{__name__}:Recording", **changes).epochs
    expected = [0.1 * rate_factor(Schedule(2, 16, **changes), step, 3) for step in range(6)]
    assert Recording.rates == expected
    assert [epoch["lr"] for epoch in epochs] == [expected[2], expected[5]]


def test_label_smoothing_changes_the_loss_as_defined(run):
    plain, smooth = (run(batch=48, epochs=1, label_smoothing=s).epochs[0]["loss"] for s in (0.0, 0.5))
    torch.manual_seed(0)
    # At one step an epoch the loss is of the initial network: compute it anew.
    parts = data.load(Task("fake", 48, 32), 0)
    network = Watched(parts.image_shape, parts.classes)
    logits = network(parts.train.images()).log_softmax(1).detach()
    hard = -logits[torch.arange(48), parts.train.labels].mean()
    assert plain == pytest.approx(float(hard), rel=1e-5)
    assert smooth == pytest.approx(float(0.5 * hard - 0.5 * logits.mean()), rel=1e-5)


def test_micro_batches_add_up_to_the_batch(run):
    whole, parts = run(), run(accumulate=3)
    trained = [n for training, n, _, _ in SEEN if training]
    assert trained == [6, 6, 4] * 6
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)
    # With a metric, too: it is applied once, to the sum.
    whole, parts = (run("reweighted:lam=3", accumulate=a) for a in (1, 3))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["none", "reweighted:lam=0.1"])
def test_the_gradient_is_clipped_after_the_operator(run, metric):
    # lam < 1 amplifies: clipped before it, the step would be longer than the limit.
    one = {"batch": 48, "epochs": 1, "decay": "none"}
    start = weights(run(lr=1e-30, **one))
    step = weights(run(metric, lr=1.0, clip=0.01, **one)) - start
    assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)
    assert float((weights(run(metric, lr=1.0, **one)) - start).norm()) > 0.02


def test_clipping_directs_every_step_once_and_first(run):
    Recording.norms.clear()
    run("reweighted:lam=0.1", optimizer=f"{__name__}:Recording", clip=0.01)
    assert Recording.norms == pytest.approx([0.01] * 6, rel=1e-3)
    # A limit that is never reached changes nothing, in any step.
    for metric in ("none", "reweighted:lam=0.1"):
        assert torch.equal(weights(run(metric)), weights(run(metric, clip=1e9)))


def test_bfloat16_is_the_precision_of_the_pass_and_not_of_the_weights(run):
    outcome = run(precision="bfloat16")
    assert {dtype for _, _, dtype, _ in SEEN} == {torch.bfloat16}
    assert weights(outcome).dtype == torch.float32
    run()
    assert {dtype for _, _, dtype, _ in SEEN} == {torch.float32}


@pytest.mark.parametrize("wanted", [False, True])
def test_channels_last_is_the_layout_of_images_and_weights(run, monkeypatch, wanted):
    load = data.load

    def colored(task, seed):  # with a single channel, both layouts are the same
        parts = load(task, seed)
        pixels = parts.train.pixels.expand(-1, 3, -1, -1).contiguous()
        names = ("train", "validation", "test")
        return dataclasses.replace(
            parts, **{k: dataclasses.replace(getattr(parts, k), pixels=pixels) for k in names}
        )

    monkeypatch.setattr(data, "load", colored)
    run(channels_last=wanted)
    assert {layout for *_, layout in SEEN} == {wanted}


def test_compile_runs_the_network_through_the_compiler(run, monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: calls.append(type(self).__name__))
    run()
    assert calls == []
    run(compile=True)
    assert calls == ["Watched"]


def test_the_average_is_the_recursion_with_a_decay_that_grows():
    torch.manual_seed(0)
    model = models.BUILTIN["small-cnn"]((1, 8, 8), 4, width=2)
    average = MovingAverage(model, 0.3)
    expected, stats = copy.deepcopy(model.head.weight.detach()), model.features[1].running_mean.clone()
    for step in range(6):
        with torch.no_grad():
            model.head.weight.normal_()
            model(torch.randn(4, 1, 8, 8))
        average.begin_step()
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.head.weight.detach()
        stats = decay * stats + (1 - decay) * model.features[1].running_mean
    torch.testing.assert_close(average.module.head.weight, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average.module.features[1].running_mean, stats, rtol=1e-5, atol=1e-6)
    assert average.module.features[1].num_batches_tracked == 6


def test_what_is_evaluated_is_the_average(run):
    last, averaged = run(lr=0.5), run(lr=0.5, ema=0.9)
    # The training is the same, what is evaluated is not.
    assert [e["loss"] for e in last.epochs] == [e["loss"] for e in averaged.epochs]
    assert [e["weight_norm"] for e in last.epochs] == [e["weight_norm"] for e in averaged.epochs]
    assert not torch.equal(weights(last), weights(averaged))
    assert not any(p.requires_grad for p in averaged.model.parameters())

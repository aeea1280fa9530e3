import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from cdgrad import ReweightedL2, channel_directed_, select
from cdgrad.diagnostics import alignment
from cdgrad.study import StudyError, data, models
from cdgrad.study.spec import Model, Optimizer, Schedule, Setting, Task
from cdgrad.study.train.evaluate import count_mistakes
from cdgrad.study.train.loop import train


def trained(setting: Setting, seed: int = 0):
    return train(setting, seed, lambda epoch, measured: None)


@pytest.fixture
def setting(tiny):
    return dataclasses.replace(tiny.setting("", "sgd"), schedule=Schedule(2, 16))


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "none"},
        {"metric": "reweighted:lam=3"},
        {"metric": "sobolev:lam=0.01", "permute": True},
        {"metric": "none", "centralize": True},
    ],
)
def test_the_same_seed_gives_the_same_bits(setting, changes):
    setting = dataclasses.replace(setting, **changes)
    first, again, other = trained(setting), trained(setting), trained(setting, seed=1)
    assert (first.error, first.epochs) == (again.error, again.epochs)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.epochs != other.epochs


def test_the_l2_metric_is_the_baseline_bit_for_bit(setting):
    base, l2 = trained(setting), trained(dataclasses.replace(setting, metric="l2"))
    assert (base.error, base.epochs) == (l2.error, l2.epochs)
    for a, b in zip(base.model.parameters(), l2.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_arm_starts_where_the_baseline_starts(setting):
    # With one step an epoch, the loss of the first epoch is that of the initial network.
    whole = dataclasses.replace(setting, schedule=dataclasses.replace(setting.schedule, batch=48))
    directed = trained(dataclasses.replace(whole, metric="reweighted:lam=3"))
    base = trained(whole)
    assert base.epochs[0]["loss"] == directed.epochs[0]["loss"]
    assert base.epochs[1]["loss"] != directed.epochs[1]["loss"]


def test_the_recorded_alignment_is_that_of_the_metric(setting):
    whole = dataclasses.replace(
        setting, metric="reweighted:lam=3", schedule=dataclasses.replace(setting.schedule, batch=48, epochs=1)
    )
    measured = trained(whole).epochs[0]
    torch.manual_seed(0)
    parts = data.load(whole.task, 0)
    model = models.build(whole.model.name, parts.image_shape, parts.classes, whole.model.arguments)
    torch.nn.functional.cross_entropy(model(parts.train.images()), parts.train.labels).backward()
    targets = select(model).targets
    raw = [t.param.grad for t in targets]
    directed = [grad.clone() for grad in raw]
    channel_directed_(directed, ReweightedL2(3))
    assert (measured["cosine"], measured["norm_ratio"]) == pytest.approx(alignment(raw, directed), rel=1e-5)
    assert measured["norm_ratio"] < 0.9


def test_rescale_keeps_the_norm(setting):
    measured = trained(dataclasses.replace(setting, metric="reweighted:lam=3", rescale="norm")).epochs[-1]
    assert measured["norm_ratio"] == pytest.approx(1, rel=1e-5)
    assert measured["cosine"] < 0.999


def test_a_diverged_run_is_a_result(setting):
    wild = dataclasses.replace(setting, optimizer=Optimizer("torch.optim:SGD", 1e30))
    outcome = trained(wild)
    assert outcome.status == "diverged"
    assert outcome.error == 100.0
    assert 1 <= len(outcome.epochs) <= 2


def test_weights_that_the_last_step_made_infinite_are_a_diverged_run(setting, monkeypatch):
    one_step = dataclasses.replace(setting.schedule, epochs=1, batch=setting.task.train)
    once = dataclasses.replace(setting, schedule=one_step)
    step = torch.optim.SGD.step

    def overflow(optimizer):
        step(optimizer)
        optimizer.param_groups[0]["params"][-1].detach().fill_(math.inf)  # a bias of the last layer

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    outcome = trained(once)
    assert math.isfinite(outcome.epochs[-1]["loss"])
    assert outcome.status == "diverged"


def test_an_optimizer_that_wants_a_closure_is_refused(setting):
    with pytest.raises(StudyError, match=r"LBFGS.* needs a closure, which.*entry = "):
        trained(dataclasses.replace(setting, optimizer=Optimizer("torch.optim:LBFGS", 0.1)))


@pytest.mark.parametrize(("evaluate", "read"), [("test", True), ("validation", False)])
def test_the_test_images_are_read_at_the_end_or_never(setting, monkeypatch, evaluate, read):
    seen = []
    load = data.load

    def watched(task, seed):
        parts = load(task, seed)

        class Watched(data.Split):
            def __getattribute__(self, name):
                if name == "pixels":
                    seen.append(len(epochs))
                return super().__getattribute__(name)

        test = {f.name: getattr(parts.test, f.name) for f in dataclasses.fields(data.Split)}
        return dataclasses.replace(parts, test=Watched(**test))

    epochs = []
    monkeypatch.setattr(data, "load", watched)
    train(dataclasses.replace(setting, evaluate=evaluate), 0, lambda epoch, _: epochs.append(epoch))
    assert set(seen) == ({setting.schedule.epochs} if read else set())


def test_augmentation_is_drawn_from_a_stream_of_its_own(setting, monkeypatch):
    given = []
    augment = data.augment

    def watched(images, names, generator):
        given.append((images.clone(), augment(images, names, generator)))
        return given[-1][1]

    monkeypatch.setattr(data, "augment", watched)
    moved = dataclasses.replace(setting, task=dataclasses.replace(setting.task, augment=("pad-crop", "flip")))
    runs = [trained(moved, seed) for seed in (0, 0, 1)]
    assert (runs[0].error, runs[0].epochs) == (runs[1].error, runs[1].epochs)
    assert runs[0].epochs != runs[2].epochs
    assert runs[0].epochs != trained(setting).epochs
    # The order is that without augmentation, and every epoch draws anew.
    steps = len(given) // 4
    for (plain, changed), (same, kept) in zip(given[:steps], given[-steps:], strict=True):
        assert torch.equal(plain, same)
        assert torch.equal(same, kept)
        assert not torch.equal(plain, changed)


def test_the_error_is_the_share_of_wrong_answers():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [torch.nan, 1.0]])
    labels = torch.tensor([0, 1, 1, 1])
    part = data.Split(logits, torch.arange(4), labels, mean=torch.tensor(0.0), std=torch.tensor(1.0))
    wrong = torch.tensor(7)
    count_mistakes(torch.nn.Identity(), part, wrong)
    assert wrong == 2


def test_training_leaves_the_global_random_state_alone(setting):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(setting)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Model("small-cnn", {"widht": 3})}, "small-cnn refuses its arguments"),
        ({"model": Model("nowhere:net")}, "nowhere:net cannot be imported"),
        ({"model": Model("math:sqrt")}, "math:sqrt refuses its arguments"),
        ({"model": Model("math:pi")}, "math:pi must be callable"),
        ({"model": Model("builtins:divmod")}, "builtins:divmod refuses its arguments"),
        ({"optimizer": Optimizer("torch.optim:SDG", 0.1)}, "torch.optim:SDG cannot be imported"),
        (
            {"optimizer": Optimizer("torch.optim:SGD", 0.1, {"beta": 1})},
            "torch.optim:SGD refuses its arguments",
        ),
        ({"task": Task("fake", 400, 1)}, "leaves none to test on"),
    ],
)
def test_what_cannot_be_built_is_explained(setting, change, message):
    with pytest.raises(StudyError, match=message):
        trained(dataclasses.replace(setting, **change))


def split_decay(parameters, lr):
    decay = [p for p in parameters if p.ndim > 1]
    return torch.optim.SGD([{"params": decay}, {"params": [p for p in parameters if p.ndim <= 1]}], lr=lr)


def without_biases(parameters, lr):
    return torch.optim.SGD([p for p in parameters if p.ndim > 1], lr=lr)


def test_an_optimizer_may_go_through_its_parameters_twice_and_must_hold_all(setting):
    one = dataclasses.replace(setting, optimizer=Optimizer(f"{__name__}:split_decay", 0.1))
    plain = dataclasses.replace(setting, optimizer=Optimizer("torch.optim:SGD", 0.1))
    assert trained(one).epochs == trained(plain).epochs
    partial = dataclasses.replace(setting, optimizer=Optimizer(f"{__name__}:without_biases", 0.1))
    with pytest.raises(StudyError, match=r"holds \d+ of the \d+ trainable parameters, not .*bias"):
        trained(partial)


class TwoPoints(torch.optim.SGD):
    """Trains at one point and is evaluated at another, as schedule-free optimizers do."""

    calls: ClassVar[list[str]] = []

    def train(self):
        self.calls.append("train")

    def eval(self):
        self.calls.append("eval")

    def step(self, closure=None):
        assert self.calls[-1] == "train"
        return super().step(closure)


def test_an_optimizer_with_two_points_is_evaluated_at_the_right_one(setting, monkeypatch):
    monkeypatch.setattr(TwoPoints, "calls", [])

    def watched(model, part, wrong):
        assert TwoPoints.calls[-1] == "eval"
        return count_mistakes(model, part, wrong)

    monkeypatch.setattr("cdgrad.study.train.epoch.count_mistakes", watched)
    trained(dataclasses.replace(setting, optimizer=Optimizer(f"{__name__}:TwoPoints", 0.1)))
    assert TwoPoints.calls[:2] == ["train", "eval"]


def flat_batch_norm(shape, classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 4, shape[1:]),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4, classes),
    )


@pytest.mark.parametrize(
    ("count", "accumulate", "fails"), [(33, 1, True), (34, 1, False), (34, 2, True), (33, 3, True)]
)
def test_a_batch_of_one_image_under_batch_norm_is_refused_before_training(setting, count, accumulate, fails):
    changed = dataclasses.replace(
        setting,
        task=Task("fake", count, 32),
        model=Model(f"{__name__}:flat_batch_norm"),
        schedule=dataclasses.replace(setting.schedule, batch=16, accumulate=accumulate),
    )
    if fails:
        with pytest.raises(StudyError, match="leave a batch of 1 image, on which batch norm cannot train"):
            trained(changed)
    else:
        assert trained(changed).status == "ok"

"""What surrounds the step: schedulers, checkpoints, clipping, accumulation, loss scaling, new parameters."""

import copy
import io
import pickle
import re
import sys

import pytest
import torch
from optimizer_catalogue import IMAGES, LABELS, METRIC, direct_by_hand, network
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cdgrad import attach

VARIANTS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.01, **options)


def loss_of(model, part=slice(None)):
    return functional.cross_entropy(model(IMAGES[part]), LABELS[part])


def train(model, optimizer, steps=2, before_step=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        before_step()
        optimizer.step()


def assert_equal(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


def pair(**options):
    """Two equal models and optimizers, the first attached, and what directs the second by hand."""
    models = network(), network()
    optimizers = [adam(model, **options) for model in models]
    return *models, *optimizers, attach(optimizers[0], models[0], METRIC)


def test_schedulers():
    attached, manual, optimizer, manual_optimizer, _ = pair()
    for opt in (optimizer, manual_optimizer):
        opt.schedulers = [
            torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=6),
            torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
        ]
    for _ in range(5):
        train(attached, optimizer, 1)
        train(manual, manual_optimizer, 1, lambda: direct_by_hand(manual))
        for opt in (optimizer, manual_optimizer):
            for scheduler in opt.schedulers:
                scheduler.step()
    assert_equal(attached, manual)


def test_checkpoints_go_back_and_forth_between_runs_with_and_without():
    """Attached, ordinary, attached again, always from a file; the file does not know the difference."""
    attached, manual, optimizer, manual_optimizer, _ = pair()
    for leg, directed in enumerate((True, False, True)):
        if leg:
            file = io.BytesIO()
            torch.save({"model": attached.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            attached = network()
            attached.load_state_dict(state["model"])
            optimizer = adam(attached)
            if leg == 1:
                optimizer.load_state_dict(state["optimizer"])
            if directed:
                attach(optimizer, attached, METRIC)
            if leg == 2:  # after attaching
                optimizer.load_state_dict(state["optimizer"])
        train(attached, optimizer)
        train(
            manual, manual_optimizer, before_step=lambda on=directed: direct_by_hand(manual) if on else None
        )
        assert optimizer.state_dict().keys() == manual_optimizer.state_dict().keys()
    assert_equal(attached, manual)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_is_not_attached_and_attaches_again_from_plain_data(duplicate):
    attached, _, optimizer, _, handle = pair()
    train(attached, optimizer)
    twin, twin_optimizer = duplicate((attached, optimizer))
    assert not twin_optimizer._optimizer_step_pre_hooks
    attach(twin_optimizer, twin, **handle.options)
    train(attached, optimizer)
    train(twin, twin_optimizer)
    assert_equal(attached, twin)


def test_clipping_before_sees_the_ordinary_norm_and_after_apply_the_directed_one():
    def clip(model):
        return float(nn.utils.clip_grad_norm_(model.parameters(), 0.1))

    norms = []
    for order in ("clip, direct", "direct, clip"):
        attached, manual, optimizer, manual_optimizer, handle = pair()

        def before(order=order, model=attached, handle=handle):
            if order == "direct, clip":
                handle.apply()
            norms.append(clip(model))

        def by_hand(order=order, model=manual):
            for action in order.split(", "):
                clip(model) if action == "clip" else direct_by_hand(model)

        train(attached, optimizer, 3, before)
        train(manual, manual_optimizer, 3, by_hand)
        assert_equal(attached, manual)
    assert norms[0] > norms[3]


def test_accumulation_over_micro_batches_equals_one_batch():
    attached, manual, optimizer, manual_optimizer, _ = pair()
    for _ in range(3):
        optimizer.zero_grad()
        for part in (slice(0, 2), slice(2, 6)):
            (loss_of(attached, part) * len(LABELS[part]) / 6).backward()
        optimizer.step()
    train(manual, manual_optimizer, 3, lambda: direct_by_hand(manual))
    for x, y in zip(attached.parameters(), manual.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@every_variant
@pytest.mark.parametrize("order", ["step", "unscale, apply, clip"])
def test_gradient_scaler_with_an_overflow(options, order):
    """The scaler steps fused optimizers with scaled gradients, finite or not; weights stay either way."""
    attached, manual, optimizer, manual_optimizer, handle = pair(**options)
    plain = network()
    plain_optimizer = adam(plain, **options)
    for model, opt in ((attached, optimizer), (manual, manual_optimizer), (plain, plain_optimizer)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for step in range(4):
            opt.zero_grad()
            scaler.scale(loss_of(model)).backward()
            if step == 2:
                model[0].weight.grad[1, 0, 0, 0] = float("inf")
            before = copy.deepcopy(model)
            if order != "step":
                scaler.unscale_(opt)
                if model is attached:
                    handle.apply()
            if model is manual:
                direct_by_hand(model)
            if order != "step":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
            if step == 2:
                assert_equal(model, before)
        assert scaler.get_scale() == 2.0**7
    assert_equal(attached, manual)
    assert not torch.equal(attached[0].weight, plain[0].weight)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("rescale", ["none", "norm"])
def test_capturable_steps_read_nothing_back(foreach, rescale, monkeypatch):
    """A CUDA graph cannot hold a value that the host reads. Torch allows capturable steps on accelerators
    alone; their arithmetic runs on a CPU, too.
    """
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda **_: ["cpu"]
    )
    attached, manual = network(), network()
    optimizer, manual_optimizer = (
        adam(model, capturable=True, foreach=foreach) for model in (attached, manual)
    )
    attach(optimizer, attached, METRIC, rescale=rescale, backend="eager")
    for _ in range(3):
        loss_of(attached).backward()
        loss_of(manual).backward()
        with NoReadBack():
            optimizer.step()
        norms = {p: p.grad.double().norm() for p in manual.parameters() if p.ndim == 4}
        direct_by_hand(manual)
        if rescale == "norm":
            for p, norm in norms.items():
                p.grad.mul_(norm / p.grad.double().norm())
        manual_optimizer.step()
        for a, b in zip(attached.parameters(), manual.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        optimizer.zero_grad()
        manual_optimizer.zero_grad()
    with pytest.raises(AssertionError, match="read back"), NoReadBack():
        attached[0].weight.norm().item()


class NoReadBack(TorchDispatchMode):
    """Fails where a value, or a size that depends on values, would come back to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.__name__.split(".")[0] not in ("_local_scalar_dense", "nonzero", "equal"), "read back"
        return func(*args, **(kwargs or {}))


def test_schedulers_made_before_attaching():
    """They replace the optimizer's step by one of their own."""
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = adam(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        if model is attached:
            attach(optimizer, model, METRIC)
        for _ in range(3):
            train(model, optimizer, 1, lambda model=model: direct_by_hand(model) if model is manual else None)
            scheduler.step()
    assert_equal(attached, manual)


def test_parameters_of_the_model_added_later_are_directed_from_then_on():
    model, manual = network(), network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    handle = attach(optimizer, model, METRIC)
    assert re.search(r"2\.weight +not held by this SGD", str(handle))
    optimizer.add_param_group({"params": [*model[2].parameters(), *model[4].parameters()]})
    assert "not held" not in str(handle)
    train(model, optimizer)
    train(manual, torch.optim.SGD(manual.parameters(), lr=0.1), before_step=lambda: direct_by_hand(manual))
    assert_equal(model, manual)


def test_parameters_that_the_model_did_not_have_are_noticed_once_and_shown():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, model, METRIC)
    model[2] = nn.Conv2d(4, 4, 3, padding=2, bias=False)
    optimizer.add_param_group({"params": model[2].parameters()})
    with pytest.warns(
        UserWarning, match=r"SGD holds 1 parameters \(4x4x3x3\).*handle\.remove\(\) and attach"
    ):
        optimizer.step()
    optimizer.step()
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(7))})
    with pytest.warns(UserWarning, match=r"SGD holds 1 parameters \(7\)"):
        optimizer.step()
    assert re.search(
        r"4x4x3x3 parameter +new since attach: remove\(\) this handle and attach again", str(handle)
    )
    handle.remove()
    assert "new since" not in str(attach(optimizer, model, METRIC))

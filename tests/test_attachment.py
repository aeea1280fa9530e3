"""An attached optimizer equals one whose gradients are directed by hand, in every way to step."""

import copy
import gc
import pickle
import re
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cdgrad
from cdgrad import L2, MeanSobolev, ReweightedL2, Sobolev, attach
from cdgrad.reference import directed

IMAGES = torch.randn(12, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 5
METRICS = [ReweightedL2(3), Sobolev(0.05, "periodic"), MeanSobolev(0.2)]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU()
    deconv = nn.ConvTranspose2d(8, 4, 2)
    return nn.Sequential(*layers, deconv, nn.Flatten(), nn.Linear(36, 5)).double()


# Written out, so that a mistake in `select` cannot agree with itself.
AXES = {"0.weight": (0, 1), "3.weight": (0, 2), "5.weight": (1, 1)}


def backward(model, optimizer):
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    return loss


def direct_by_hand(model, metric):
    for name, param in model.named_parameters():
        if name in AXES and param.grad is not None:
            param.grad.copy_(torch.from_numpy(directed(param.grad.numpy(), metric, *AXES[name])))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_close(actual, expected, tolerance=1e-9):
    difference = (weights(actual) - weights(expected)).norm()
    assert difference <= tolerance * weights(expected).norm(), difference


OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=4, line_search_fn="strong_wolfe"),
}


@every_metric
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("by_closure", [False, True])
def test_fifty_steps_equal_hand_directed_ones(metric, make, by_closure):
    if make is OPTIMIZERS["LBFGS"] and not by_closure:
        pytest.skip("LBFGS needs a closure")
    attached, manual = network(), network()
    optimizer = make(attached.parameters())
    attach(optimizer, attached, metric)
    manual_optimizer = make(manual.parameters())
    evaluations = [0, 0]

    def closure():
        evaluations[0] += 1
        return backward(attached, optimizer)

    def manual_closure():
        evaluations[1] += 1
        loss = backward(manual, manual_optimizer)
        direct_by_hand(manual, metric)
        return loss

    for _ in range(13 if make is OPTIMIZERS["LBFGS"] else 50):  # a call of LBFGS takes four steps
        if by_closure:
            assert torch.allclose(optimizer.step(closure), manual_optimizer.step(manual_closure))
        else:
            closure()
            optimizer.step()
            manual_closure()
            manual_optimizer.step()
    assert evaluations[0] == evaluations[1] >= 50
    assert_close(attached, manual)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_l2_is_bit_identical_to_no_attachment(make):
    attached, plain = network().float(), network().float()
    optimizer, plain_optimizer = make(attached.parameters()), make(plain.parameters())
    attach(optimizer, attached, L2())
    for model, opt in ((attached, optimizer), (plain, plain_optimizer)):

        def closure(model=model, opt=opt):
            opt.zero_grad()
            loss = functional.cross_entropy(model(IMAGES.float()), LABELS)
            loss.backward()
            return loss

        for _ in range(10):
            opt.step(closure)
    assert torch.equal(weights(attached), weights(plain))


def step_pair(metric, change=lambda handle: None, steps=3, **options):
    """A model after attached steps and one after hand-directed steps."""
    attached, manual = network(), network()
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.05)
    handle = attach(optimizer, attached, metric, **options)
    manual_optimizer = torch.optim.SGD(manual.parameters(), lr=0.05)
    change(handle)
    for _ in range(steps):
        backward(attached, optimizer)
        optimizer.step()
        backward(manual, manual_optimizer)
        direct_by_hand(manual, handle.metric if handle.enabled else L2())
        manual_optimizer.step()
    return attached, manual


def test_the_metric_can_change_in_mid_training():
    attached, manual = network(), network()
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.05)
    manual_optimizer = torch.optim.SGD(manual.parameters(), lr=0.05)
    handle = attach(optimizer, attached, "reweighted:lam=3")
    for metric in ("reweighted:lam=3", "sobolev:lam=0.1", "l2", Sobolev(0.01)):
        handle.metric = metric
        backward(attached, optimizer)
        optimizer.step()
        backward(manual, manual_optimizer)
        direct_by_hand(manual, handle.metric)
        manual_optimizer.step()
    assert handle.metric == Sobolev(0.01)
    assert_close(attached, manual)
    with pytest.raises(ValueError, match="did you mean"):
        handle.metric = "sobolef:lam=1"
    assert handle.metric == Sobolev(0.01)


def test_enabled_and_remove():
    def disable(handle):
        handle.enabled = False

    assert_close(*step_pair(Sobolev(0.1), disable))
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if model is attached:
            handle = attach(optimizer, model, "sobolev:lam=0.1")
            attached_optimizer = optimizer
            handle.remove()
            handle.remove()
        backward(model, optimizer)
        optimizer.step()
    assert torch.equal(weights(attached), weights(manual))
    with pytest.raises(RuntimeError, match=r"was removed, or is a copy; attach again with cdgrad\.attach"):
        handle.apply()
    assert handle.optimizer is attached_optimizer
    attach(attached_optimizer, attached, "l2")


def test_missing_and_frozen_gradients_and_groups():
    attached, manual = network(), network()
    for model in (attached, manual):
        model[0].weight.requires_grad_(False)
        params = list(model.parameters())
        optimizer = torch.optim.SGD([{"params": params[:3]}, {"params": params[3:], "lr": 0.01}], lr=0.05)
        if model is attached:
            handle = attach(optimizer, model, "sobolev:lam=0.1")
        for _ in range(3):
            backward(model, optimizer)
            model[5].weight.grad = None
            if model is manual:
                direct_by_hand(model, Sobolev(0.1))
            optimizer.step()
    assert_close(attached, manual)
    assert re.search(r"0\.weight +frozen", str(handle))


def test_parameters_the_optimizer_does_not_hold_are_reported_and_left():
    model = network()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.05)
    handle = attach(optimizer, model, "sobolev:lam=0.1")
    assert re.search(r"3\.weight +not held by this SGD", str(handle))
    backward(model, optimizer)
    model[3].weight.grad = gradient = torch.randn_like(model[3].weight)
    before = gradient.clone()
    optimizer.step()
    assert torch.equal(gradient, before)
    optimizer.add_param_group({"params": [model[3].weight]})
    assert not re.search(r"3\.weight +not held", str(handle))
    optimizer.step()
    assert not torch.equal(gradient, before)


@every_metric
def test_rescale_keeps_each_norm(metric):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(optimizer, model, metric, rescale="norm")
    backward(model, optimizer)
    for tiny in (1.0, 1e-100):
        model[0].weight.grad.mul_(tiny)
        model[5].weight.grad.zero_()
        raw = {name: param.grad.clone() for name, param in model.named_parameters()}
        optimizer.step()
        for name, param in model.named_parameters():
            if name in AXES and name != "5.weight":
                plain = torch.from_numpy(directed(raw[name].numpy(), metric, *AXES[name]))
                scale = raw[name].abs().max()
                expected = plain / scale * ((raw[name] / scale).norm() / (plain / scale).norm())
                torch.testing.assert_close(param.grad / scale, expected, rtol=1e-9, atol=1e-12)
            else:
                assert torch.equal(param.grad, raw[name])


def test_rescale_commutes_with_a_loss_scale():
    gradients = []
    for scale in (1.0, 2.0**16):
        model = network().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attach(optimizer, model, "sobolev:lam=0.1", rescale="norm")
        (functional.cross_entropy(model(IMAGES.float()), LABELS) * scale).backward()
        optimizer.step()
        gradients.append(model[3].weight.grad / scale)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rescale", ["none", "norm"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_gradients_stay_so(rescale, value):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(optimizer, model, "sobolev:lam=0.1", rescale=rescale)
    backward(model, optimizer)
    model[0].weight.grad[2, 0, 0, 0] = value
    optimizer.step()
    assert not model[0].weight.grad.isfinite().all()
    assert model[3].weight.grad.isfinite().all()


def test_the_gradient_is_written_in_place():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(optimizer, model, "sobolev:lam=0.1")
    flat = torch.zeros(model[0].weight.numel(), dtype=torch.float64)
    model[0].weight.grad = flat.view_as(model[0].weight)
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    raw = flat.clone()
    optimizer.step()
    assert model[0].weight.grad.data_ptr() == flat.data_ptr()
    expected = directed(raw.view_as(model[0].weight).numpy(), Sobolev(0.1)).ravel()
    np.testing.assert_allclose(flat, expected, rtol=1e-9, atol=1e-15)


def test_apply_directs_now_and_not_again():
    """Clip the directed gradient: by hand, by `apply`, and by `apply` inside a closure."""
    models = [network() for _ in range(4)]
    for way, model in zip(("hand", "apply", "inside", "before"), models, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        handle = None if way == "hand" else attach(optimizer, model, "sobolev:lam=0.1")

        def clipped(way=way, model=model, optimizer=optimizer, handle=handle):
            loss = backward(model, optimizer)
            direct_by_hand(model, Sobolev(0.1)) if handle is None else handle.apply()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        for _ in range(4):
            if way == "inside":
                optimizer.step(clipped)
            elif way == "before":
                loss = clipped()
                optimizer.step(lambda loss=loss: loss)
            else:
                clipped()
                optimizer.step()
    for model in models[1:]:
        assert_close(model, models[0])


def test_a_step_skipped_after_apply_does_not_leak_into_the_next():
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if model is attached:
            handle = attach(optimizer, model, "sobolev:lam=0.1")
            backward(model, optimizer)
            handle.apply()  # and no step, as when a gradient scaler found an overflow
        else:
            backward(model, optimizer)
        backward(model, optimizer)
        if model is manual:
            direct_by_hand(model, Sobolev(0.1))
        optimizer.step()
    assert_close(attached, manual)


class Twice(torch.optim.SGD):
    """A subclass whose own hooked step calls the hooked step of its parent."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_step_that_reaches_the_hook_twice_directs_once(by_closure, set_to_none):
    torch.optim.SGD([torch.zeros(1)])  # so that the parent's step is hooked too
    attached, manual = network(), network()
    for model, kind in ((attached, Twice), (manual, torch.optim.SGD)):
        optimizer = kind(model.parameters(), lr=0.05)
        if model is attached:
            attach(optimizer, model, "sobolev:lam=0.1")

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = functional.cross_entropy(model(IMAGES), LABELS)
            loss.backward()
            if model is manual:
                direct_by_hand(model, Sobolev(0.1))
            return loss

        for _ in range(3):
            if by_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    assert_close(attached, manual)


def test_an_exception_in_a_closure_leaves_the_next_step_right():
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if model is attached:
            attach(optimizer, model, "sobolev:lam=0.1")

            def interrupted(model=model, optimizer=optimizer):
                backward(model, optimizer)
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                optimizer.step(interrupted)
        else:
            backward(model, optimizer)
        backward(model, optimizer)
        if model is manual:
            direct_by_hand(model, Sobolev(0.1))
        optimizer.step()
    assert_close(attached, manual)


def test_the_state_dict_and_schedulers_are_untouched():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    before = copy.deepcopy(optimizer.state_dict())
    handle = attach(optimizer, model, "sobolev:lam=0.1")
    assert optimizer.state_dict() == before
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    backward(model, optimizer)
    raw = model[0].weight.grad.clone()
    optimizer.step()
    scheduler.step()
    assert not torch.equal(model[0].weight.grad, raw)
    assert type(optimizer) is torch.optim.Adam
    assert handle.optimizer is optimizer


def test_copies_lose_the_hooks_and_options_attach_again():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = attach(optimizer, model, "sobolev:lam=0.1", exclude=["3.*"], rescale="norm")
    options = pickle.loads(pickle.dumps(handle.options))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    backward(twin, twin_optimizer)
    raw = twin[0].weight.grad.clone()
    twin_optimizer.step()
    assert torch.equal(twin[0].weight.grad, raw)
    again = attach(twin_optimizer, twin, **options)
    assert str(again) == str(handle)
    assert again.options == handle.options


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda three: pickle.loads(pickle.dumps(three))])
def test_a_copied_handle_says_that_it_is_not_attached(duplicate):
    """As when a module that keeps its handle is copied; in the middle of a step, too."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = attach(optimizer, model, "sobolev:lam=0.1")
    backward(model, optimizer)
    handle.apply()
    handle.steps = 3
    twin, twin_optimizer, twin_handle = duplicate((model, optimizer, handle))
    assert str(twin_handle).startswith("sobolev:lam=0.1 along output, rescale none, on SGD, not attached\n")
    assert "in no model" not in str(twin_handle)
    for method in (twin_handle.apply, twin_handle.statistics):
        with pytest.raises(RuntimeError, match="is a copy; attach again"):
            method()
    assert twin_handle.optimizer is twin_optimizer
    assert twin_handle.state_dict() == handle.state_dict()
    again = attach(twin_optimizer, twin, **twin_handle.options)
    for one, opt in ((model, optimizer), (twin, twin_optimizer)):
        backward(one, opt)
        opt.step()
    assert torch.equal(weights(model), weights(twin))
    assert str(again) == str(handle)
    handle.enabled = False
    assert " on SGD, not enabled\n" in str(handle)


def test_attaching_twice_is_an_error_unless_the_parameters_differ():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = attach(optimizer, model, "sobolev:lam=0.1", include="0.*")
    with pytest.raises(ValueError, match=r"already attached to this optimizer: 0\.weight; the.*remove"):
        attach(optimizer, model, "sobolev:lam=0.1")
    attach(optimizer, model, "reweighted:lam=2", exclude="0.*")
    handle.remove()
    attach(optimizer, model, "reweighted:lam=2", include="0.*")


def test_an_optimizer_of_several_models_is_attached_with_each_and_says_what_is_in_none():
    """As that of the two generators of a CycleGAN: with one of them, half of the weights stay as they are."""
    attached, manual = [network(), network()], [network(), network()]
    optimizers = []
    for there, back in (attached, manual):
        params = [*there.parameters(), *back.parameters()]
        optimizers.append(torch.optim.SGD(params, lr=0.05))
    first = attach(optimizers[0], attached[0], "sobolev:lam=0.1")
    in_none = r"\n10 parameters +in no model attached to this SGD: attach it with their model, too"
    assert re.search(in_none, str(first))
    second = attach(optimizers[0], attached[1], "sobolev:lam=0.1")
    assert "in no model" not in str(first) + str(second)
    second.remove()
    assert re.search(in_none, str(first))
    attach(optimizers[0], attached[1], "sobolev:lam=0.1")
    for models, optimizer in zip((attached, manual), optimizers, strict=True):
        for model in models:
            backward(model, model)
            if models is manual:
                direct_by_hand(model, Sobolev(0.1))
        optimizer.step()
    for model, other in zip(attached, manual, strict=True):
        assert_close(model, other)


class Wrapper(torch.optim.Optimizer):
    """Keeps an optimizer inside and never runs its own constructor, as many wrappers do."""

    def __init__(self, optimizer):
        self.inner = optimizer

    def step(self, closure=None):
        return self.inner.step(closure)


def test_optimizers_whose_hooks_cannot_fire_are_refused():
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(
        ValueError,
        match=r"Wrapper\.step never runs .*; attach to the one inside: attach\(optimizer\.inner, \.\.\.\)",
    ):
        attach(Wrapper(inner), model, "l2")

    class Facade:
        def __init__(self):
            self._optimizer = inner

        @property
        def optimizer(self):
            return self._optimizer

    with pytest.raises(
        TypeError,
        match=r"expected a torch\.optim\.Optimizer, got Facade; .*attach\(optimizer\.optimizer, \.\.\.\)",
    ):
        attach(Facade(), model, "l2")

    class OfAnotherName(torch.optim.SGD):
        """As AdamC of schedule-free, whose update needs the loss."""

        def step(self, closure=None):
            raise NotImplementedError

        def step_func(self, loss):
            return super().step()

    named = OfAnotherName(model.parameters(), lr=0.05)
    with pytest.raises(
        ValueError, match=r"; call cdgrad\.channel_directed_ on .* before the method that does"
    ):
        attach(named, model, "l2")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "reweighted:lam=0"}, ValueError, "positive and finite"),
        ({"metric": None}, TypeError, "expected a metric or its text"),
        ({"rescale": "l2"}, ValueError, "rescale must be one of none, norm, got 'l2'"),
        ({"direction": "depth"}, ValueError, "direction must be one of"),
        ({"backend": "gpu"}, ValueError, "backend must be one of auto, eager, cpu, triton, got 'gpu'"),
        ({"include": "encoder.*"}, ValueError, "include pattern 'encoder.*' matches no parameter"),
    ],
)
def test_bad_options_attach_nothing(options, error, message):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(error, match=message) as raised:
        attach(optimizer, model, **{"metric": "l2", **options})
    assert "\n" not in str(raised.value)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(network().parameters(), lr=0.05)
    refusal = r"this SGD holds none of the 3 selected parameters .*; attach to the optimizer that holds them"
    with pytest.raises(ValueError, match=refusal):
        attach(optimizer, network(), "l2")
    assert not optimizer._optimizer_step_pre_hooks


def test_model_and_optimizer_the_other_way_round_are_told_apart():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(TypeError, match=r"got SGD; the optimizer comes first: attach\(optimizer, model, "):
        attach(model, optimizer, "l2")


def test_a_model_without_convolutions_warns():
    model = nn.Linear(3, 2)
    told = r"nothing to direct in Linear: .*; print\(cdgrad\.select\(model\)\) says why each of its 2 "
    with pytest.warns(UserWarning, match=told) as caught:
        attach(torch.optim.SGD(model.parameters()), model, "sobolev:lam=1")
    assert caught[0].filename == __file__  # the user's line, not the library's


def test_nothing_outlives_the_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(optimizer, model, "sobolev:lam=0.1")
    backward(model, optimizer)
    optimizer.step()
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_backend_can_be_forced(backend, monkeypatch):
    used = []
    monkeypatch.setattr(cdgrad.ops.eager, "directed_", lambda xs, metric: used.extend(["eager"] * len(xs)))
    monkeypatch.setattr(
        cdgrad.ops.cpu.launch, "directed_", lambda jobs, metric: used.extend(["cpu"] * len(jobs))
    )
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(optimizer, model, "sobolev:lam=0.1", backend=backend)
    backward(model, optimizer)
    optimizer.step()
    assert used == [backend] * 3

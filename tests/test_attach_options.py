"""Blocks, metrics by patterns, schedules and statistics of an attachment, against the operator itself."""

import json

import pytest
import torch
from torch import nn

from cdgrad import ReweightedL2, Sobolev, attach, channel_directed, select
from cdgrad.callbacks import statistics_of
from cdgrad.diagnostics import alignment, roughness

METRIC = Sobolev(0.05)


def stepped(metric=METRIC, **options):
    """A model after one step at rate 1: what moved each weight, the ordinary gradients, the handle."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(optimizer, model, metric, **options)
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    grads = [layer.weight.grad.clone() for layer in model]
    statistics = handle.statistics()
    before = [layer.weight.detach().clone() for layer in model]
    optimizer.step()
    moves = [b - layer.weight.detach() for b, layer in zip(before, model, strict=True)]
    return moves, grads, before, statistics, handle


@pytest.mark.parametrize("backend", ["auto", "eager", "cpu", "triton"])
@pytest.mark.parametrize(
    ("blocks", "sizes"), [(3, [3, 3, 3]), ([5, 3, 1], [5, 3, 1]), ([3, 3, 3], [3, 3, 3])]
)
def test_blocks_equal_the_split_tensor(blocks, sizes, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    moves, grads, *_ = stepped(blocks={"0.weight": blocks}, backend=backend)
    expected = torch.cat([channel_directed(part, METRIC) for part in grads[0].split(sizes)])
    torch.testing.assert_close(moves[0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moves[1], channel_directed(grads[1], METRIC), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("blocks", [2, 0, [4, 4], [9, 0]])
def test_blocks_that_do_not_fit(blocks):
    with pytest.raises(ValueError, match=r"blocks for weight of shape .*expected"):
        select(nn.Conv2d(3, 9, 3), blocks={"weight": blocks})


def test_blocks_of_groups_are_counts_and_equal_sizes_are_one():
    layer = nn.Conv2d(4, 12, 3, groups=2)
    for blocks, message in (
        (5, "in 2 groups: 5 equal blocks do not fit"),
        ([8, 4], "in 2 groups: expected a"),
    ):
        with pytest.raises(ValueError, match=message):
            select(layer, blocks={"weight": blocks})
    (target,) = select(nn.Conv2d(3, 9, 3), blocks={"weight": [3, 3, 3]}).targets
    assert (target.groups, target.sizes) == (3, ())
    assert select(layer, blocks={"weight": 3, "w*": 3}).targets[0].groups == 6
    with pytest.raises(ValueError, match=r"two patterns of blocks match weight, one of them 'w\*'"):
        select(layer, blocks={"weight": 3, "w*": 2})


def test_metrics_by_patterns():
    moves, grads, *_, handle = stepped({"1.*": "reweighted:lam=3", "*": METRIC})
    torch.testing.assert_close(moves[0], channel_directed(grads[0], METRIC))
    torch.testing.assert_close(moves[1], channel_directed(grads[1], "reweighted:lam=3"))
    with pytest.raises(ValueError, match=r"metric pattern '7\.\*' matches no parameter"):
        handle.metric = {"7.*": METRIC}
    with pytest.raises(ValueError, match=r"metric pattern '\*\.bias' matches only parameters that cannot be"):
        handle.metric = {"*.bias": METRIC, "*": METRIC}
    with pytest.raises(ValueError, match="at least one pattern with a metric"):
        handle.metric = {}
    assert handle.options["metric"] == {"1.*": "reweighted:lam=3", "*": str(METRIC)}
    handle.schedule(lambda step: 0.5)
    with pytest.raises(ValueError, match=r"gave lam=0\.5, and l2 has no lam"):
        attach(torch.optim.SGD([*(m := nn.Conv2d(3, 9, 3)).parameters()]), m, "l2").schedule(lambda step: 0.5)
    for target in handle.selection.targets:
        target.param.grad = torch.ones_like(target.param)
    handle.optimizer.step()
    assert handle.metric == {"1.*": ReweightedL2(0.5), "*": Sobolev(0.5)}
    with pytest.raises(
        ValueError, match=r"pattern '1\.\*' has no effect after '\*', .* write the narrower one"
    ):
        handle.metric = {"*": METRIC, "1.*": "reweighted:lam=3"}
    handle.metric = {"0.*": METRIC, "1.*": "reweighted:lam=3", "*": METRIC}  # of which the last has no effect


def test_metrics_by_patterns_are_those_of_the_parameters_that_are_held():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    attach(optimizer, model, {"1.*": "reweighted:lam=3", "*": METRIC})
    grad = torch.randn(6, 4, 3, 3)
    model[1].weight.grad = grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[1].weight.grad, channel_directed(grad, "reweighted:lam=3"))


def test_weights_that_shared_a_metric_may_get_different_ones_or_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, model, "sobolev:lam=0.5")
    for first in ("sobolev:lam=0.5", "sobolev:lam=0.1", "l2"):
        handle.metric = {"0.*": first, "*": "sobolev:lam=0.5"}
        for _ in range(2):
            grads = [torch.randn_like(layer.weight) for layer in model]
            for layer, grad in zip(model, grads, strict=True):
                layer.weight.grad = grad.clone()
            optimizer.step()
            torch.testing.assert_close(model[0].weight.grad, channel_directed(grads[0], first))
            torch.testing.assert_close(model[1].weight.grad, channel_directed(grads[1], "sobolev:lam=0.5"))


def test_statistics_are_those_of_the_step():
    moves, grads, before, statistics, _ = stepped()
    for i in range(2):
        own = alignment(grads[i : i + 1], moves[i : i + 1])
        assert statistics[f"{i}.weight/cosine"] == pytest.approx(own.cosine)
        assert statistics[f"{i}.weight/norm_ratio"] == pytest.approx(own.norm_ratio)
        assert statistics[f"{i}.weight/roughness"] == pytest.approx(roughness(before[i]))
    assert (statistics["cosine"], statistics["norm_ratio"]) == pytest.approx(alignment(grads, moves))


def test_a_schedule_resumes_bit_for_bit_and_statistics_want_ordinary_gradients():
    def train(steps, state=None):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = attach(optimizer, model, METRIC)
        handle.schedule(lambda step: 0.01 * (step + 1))
        if state is not None:
            model.load_state_dict(state[0])
            handle.load_state_dict(state[1])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        with pytest.raises(RuntimeError, match=r"directed already; call handle\.statistics"):
            handle.statistics()
        return model.state_dict(), handle.state_dict()

    whole, half = train(6), train(3)
    resumed = train(3, half)
    assert torch.equal(resumed[0]["weight"], whole[0]["weight"])
    assert resumed[1] == whole[1] == {"steps": 6, "metric": "sobolev:lam=0.06", "enabled": True}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (3, "expected a function of the step, got 3; for a constant metric, set handle.metric"),
        (lambda step: None, "the schedule returned None for step 0; expected lam, a metric or its text"),
        (lambda step: torch.ones(2), r"the schedule returned tensor\(.*\) for step 0; expected lam"),
    ],
)
def test_a_schedule_that_gives_no_metric_is_refused_at_once(schedule, message):
    *_, handle = stepped()
    handle.steps = 0
    with pytest.raises(TypeError, match=message):
        handle.schedule(schedule)
    assert handle.metric == METRIC


def test_a_schedule_whose_patterns_match_nothing_is_refused_at_once():
    *_, handle = stepped()
    with pytest.raises(ValueError, match=r"metric pattern '7\.\*' matches no parameter"):
        handle.schedule(lambda step: {"7.*": "l2"})
    handle.optimizer.step()


def test_a_schedule_overrides_the_metric_until_it_ends():
    model = nn.Conv2d(3, 9, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, model, METRIC)
    handle.schedule(lambda step: "reweighted:lam=3")
    used = []
    for schedule in ("kept", None):
        handle.metric = METRIC
        if schedule is None:
            handle.schedule(None)
        model.weight.grad = torch.randn_like(model.weight)
        optimizer.step()
        used.append(str(handle.metric))
    assert used == ["reweighted:lam=3", str(METRIC)]


@pytest.mark.parametrize("apply", [False, True])
def test_statistics_within_a_closure_are_those_of_each_evaluation(apply):
    """L-BFGS evaluates its closure several times a step, after the gradients of the last were directed."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 9, 3).double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    handle = attach(optimizer, model, METRIC)
    images, evaluations = torch.randn(2, 3, 8, 8, dtype=torch.float64), []

    def closure():
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        g = model.weight.grad.clone()
        want = channel_directed(g, METRIC).norm() / g.norm()
        evaluations.append((handle.statistics()["norm_ratio"], want.item()))
        if apply:
            handle.apply()
            with pytest.raises(RuntimeError, match="directed already"):
                handle.statistics()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert len(evaluations) >= 6
    got, want = torch.tensor(evaluations).T
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "False"}, "linear is True or False, got 'False'"),
        ({"include": 3}, "include must be a shell pattern .* or a list of them, .*; got 3"),
        ({"exclude": ["0.*", 3]}, "exclude must be a shell pattern"),
        ({"include": (name for name in ["0.*"])}, "include must be a shell pattern .* got <generator"),
        ({"blocks": 3}, "blocks must be a mapping of patterns .* got 3"),
        ({"blocks": {"0.weight": 3.0}}, "blocks of '0.weight' must be a count or a list of sizes, got 3.0"),
        ({"blocks": {"0.weight": "33"}}, "blocks of '0.weight' must be a count or a list of sizes, got '33'"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options, message):
    with pytest.raises(TypeError, match=message):
        select(nn.Sequential(nn.Conv2d(3, 9, 3)), **options)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "lam",
            3,
            AttributeError,
            "a handle has no 'lam', and setting it would have no effect; metric, enabled",
        ),
        ("enabled", "no", TypeError, "handle.enabled is True or False, got 'no'"),
        ("steps", -1, ValueError, "handle.steps is a number of steps, .* got -1"),
        ("steps", "3", ValueError, "handle.steps is a number of steps, .* got '3'"),
    ],
)
def test_what_a_handle_cannot_take_is_refused(name, value, error, message):
    *_, handle = stepped()
    with pytest.raises(error, match=message):
        setattr(handle, name, value)
    assert (handle.enabled, handle.steps) == (True, 1)


@pytest.mark.parametrize(
    ("entry", "value", "error"),
    [
        ("steps", -1, ValueError),
        ("steps", 2.5, ValueError),
        ("enabled", "no", TypeError),
        ("metric", {"7.*": "l2"}, ValueError),
    ],
)
def test_a_state_with_a_bad_entry_changes_nothing(entry, value, error):
    *_, handle = stepped()
    before = handle.state_dict()
    with pytest.raises(error):
        handle.load_state_dict({"metric": "l2", "enabled": False, "steps": 7, entry: value})
    assert handle.state_dict() == before


def test_patterns_that_no_layer_fits_once_it_is_materialized_are_refused_in_every_step():
    """They were refused in the first, and the later ones took the ordinary gradient."""
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.LazyConv2d(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, model, {"1.*": METRIC, "*": "l2"})
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"metric pattern '1\.\*' matches only parameters"):
            optimizer.step()
    handle.metric = METRIC
    optimizer.step()


def test_statistics_are_in_the_scheduled_metric_of_the_step():
    *_, handle = stepped()
    handle.schedule(lambda step: 0.5 / step)
    target = handle.selection.targets[0]
    for lam in (0.5, 0.25):
        for each in handle.selection.targets:
            each.param.grad = torch.randn_like(each.param)
        g, metric = target.param.grad.clone(), handle.metric
        want = channel_directed(g, Sobolev(lam)).norm() / g.norm()
        assert handle.statistics()["0.weight/norm_ratio"] == pytest.approx(want.item())
        assert handle.metric == metric
        handle.optimizer.step()
        torch.testing.assert_close(target.param.grad, channel_directed(g, Sobolev(lam)))


def test_statistics_without_a_gradient_say_when_to_ask_for_them():
    model = nn.Conv2d(3, 9, 3)
    handle = attach(torch.optim.SGD(model.parameters(), lr=0.1), model, METRIC)
    with pytest.raises(RuntimeError, match=r"no weight .* has a gradient; call .* after the backward pass"):
        handle.statistics()
    assert statistics_of(handle) == {}
    model.weight.grad = torch.randn_like(model.weight)
    assert statistics_of(handle) == {f"cdgrad/{name}": value for name, value in handle.statistics().items()}


def test_options_are_plain_data_of_their_own():
    """They were the caller's objects: changed later, or views of a dict, which nothing can save."""
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.LazyConv2d(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    include, exclude, blocks = {"0.*": 1, "1.*": 1}, ["0.bias"], {"0.weight": (4, 5)}
    handle = attach(optimizer, model, METRIC, include=include.keys(), exclude=exclude, blocks=blocks)
    include.clear()
    exclude.append("nothing")
    blocks["nothing"] = 2
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert [target.name for target in handle.selection.targets] == ["0.weight", "1.weight"]
    options = json.loads(json.dumps(handle.options))
    assert options == handle.options
    assert [options[name] for name in ("include", "exclude", "blocks")] == [
        ["0.*", "1.*"],
        ["0.bias"],
        {"0.weight": [4, 5]},
    ]

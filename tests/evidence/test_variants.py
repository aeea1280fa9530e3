"""The attempts of the studies do what they say."""

import pytest
import torch
import variants
from torch import nn

from cdgrad import ReweightedL2, Sobolev, channel_directed
from cdgrad.diagnostics import mean_share, roughness
from cdgrad.study import models


def weight(shape=(8, 3, 3, 3), seed=0):
    param = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    return param


def stepped(optimizer, param):
    """What the step subtracts from the parameter, per unit of learning rate 1."""
    before = param.detach().clone()
    optimizer.step()
    return before - param.detach()


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_wiener_factors_are_the_signal_s_share_of_each_part(beta):
    generator = torch.Generator().manual_seed(0)
    shape, steps = (10, 4_000), 40
    signal = torch.full(shape, 2.0)  # all of it in the mean: its part has S = 4, the noise N = 1 / 10 of 10
    average, power, factors = torch.zeros(shape), torch.zeros(2), []
    for step in range(1, steps + 1):
        g = signal + torch.randn(shape, generator=generator)
        average, power = torch.lerp(g, average, beta), torch.lerp(variants._powers(g), power, beta)
        started = 1 - beta**step
        factors.append(variants.wiener_factors(average / started, power / started, beta, step))
    mean, deviation = torch.stack(factors[1:]).mean(0)
    assert mean == pytest.approx(40 / 41, abs=0.01)
    assert deviation == pytest.approx(0.01, abs=0.02)
    assert factors[0].tolist() == [1, 1]


def test_wiener_keeps_the_gradient_s_norm_and_turns_it_to_the_steadier_part():
    param = weight()
    optimizer = variants.wiener([param], lr=1.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        g = 1 + torch.randn(param.shape, generator=generator)
        param.grad = g.clone()
        change = stepped(optimizer, param)
        assert change.norm() == pytest.approx(float(g.norm()), rel=1e-4)
    assert mean_share(g) < 0.7
    assert mean_share(change) > 0.95


@pytest.mark.parametrize(
    ("metric", "lam", "half"), [("sobolev", 0.1, Sobolev(0.05)), ("reweighted", 9, ReweightedL2(3))]
)
def test_annealed_begins_with_the_metric_and_ends_without(metric, lam, half):
    param = weight()
    optimizer = variants.annealed([param], lr=1.0, metric=metric, lam=lam, steps=8)
    gradient, changes = param.grad.clone(), []
    for _ in range(6):
        param.grad = gradient.clone()
        changes.append(stepped(optimizer, param))
    first = Sobolev(lam) if metric == "sobolev" else ReweightedL2(lam)
    torch.testing.assert_close(changes[0], channel_directed(gradient, first))
    torch.testing.assert_close(changes[2], channel_directed(gradient, half))
    torch.testing.assert_close(changes[4], gradient)
    torch.testing.assert_close(changes[5], gradient)


def test_on_update_directs_what_adamw_makes():
    param, twin = weight(), weight()
    directed = variants.on_update([param], lr=0.1, metric="reweighted", lam=3.0, weight_decay=0.0)
    plain = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.0)
    expected = channel_directed(stepped(plain, twin), ReweightedL2(3))
    torch.testing.assert_close(stepped(directed, param), expected)


def test_sorted_sobolev_smooths_along_the_sorted_channels():
    param = weight()
    with torch.no_grad():  # channel c holds the constant order[c]
        order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
        param.copy_(order.float()[:, None, None, None].expand_as(param))
    gradient = param.grad.clone()
    change = stepped(variants.sorted_sobolev([param], lr=1.0, lam=0.1), param)
    sorted_gradient = gradient[order.argsort()]
    torch.testing.assert_close(change[order.argsort()], channel_directed(sorted_gradient, Sobolev(0.1)))


def test_smooth_start_smooths_the_weights_and_keeps_their_norm():
    param = weight()
    norm, rough = param.detach().norm(), roughness(param)
    optimizer = variants.smooth_start([param], lr=1.0, lam=0.1)
    assert param.detach().norm() == pytest.approx(float(norm))
    assert roughness(param) < rough / 2
    gradient = param.grad.clone()
    torch.testing.assert_close(stepped(optimizer, param), channel_directed(gradient, Sobolev(0.1)))


def test_divided_divides_the_rate_of_convolutions_alone():
    convolution, bias = weight(), nn.Parameter(torch.zeros(4))
    bias.grad = torch.ones(4)
    optimizer = variants.divided([convolution, bias], lr=0.6, divisor=3.0)
    gradient = convolution.grad.clone()
    before = convolution.detach().clone()
    torch.testing.assert_close(stepped(optimizer, bias), torch.full((4,), 0.6))
    torch.testing.assert_close(before - convolution.detach(), 0.2 * gradient)


def test_biases_are_left_alone():
    bias = nn.Parameter(torch.ones(4))
    bias.grad = torch.arange(4.0)
    for make in (variants.wiener, variants.sorted_sobolev):
        extra = {} if make is variants.wiener else {"lam": 0.1}
        torch.testing.assert_close(stepped(make([bias], lr=1.0, **extra), bias), torch.arange(4.0))


def test_the_stacks_of_a_resnet_are_the_convolutions_of_its_equal_blocks():
    params = list(models.build("resnet20", (1, 8, 8), 10, {"width": 4}).parameters())
    stacks = variants.stacks(params, 6)
    # conv1 and conv2 of 3 blocks a stage; conv1 of a later stage's first block reads fewer channels.
    assert sorted(len(stack) for stack in stacks) == [2, 2, 3, 3, 3, 3]
    assert all(len({w.shape for w in stack}) == 1 and stack[0].ndim == 4 for stack in stacks)


@pytest.mark.parametrize("kind", ["sobolev", "reweighted", "window"])
def test_along_depth_keeps_what_is_common_to_all_blocks_and_damps_the_rest(kind):
    common = torch.ones(3, 2, 1, 1)
    alternating = [common * (-1) ** k for k in range(6)]
    kept = variants.smooth_stack([common] * 6, kind, 0.5 if kind == "window" else 3.0)
    damped = variants.smooth_stack(alternating, kind, 0.5 if kind == "window" else 3.0)
    assert all(torch.allclose(tensor, common) for tensor in kept)
    assert torch.stack(damped).norm() < 0.7 * torch.stack(alternating).norm()


@pytest.mark.parametrize("what", ["gradient", "update"])
def test_along_depth_operates_on_the_gradient_or_on_the_update(what):
    params = [weight((4, 4, 3, 3), seed=10 * k) for k in range(3)]
    grads = [p.grad.clone() for p in params]
    before = [p.detach().clone() for p in params]
    optimizer = variants.along_depth(params, lr=0.5, lam=0.3, what=what, block=1)
    optimizer.step()
    expected = channel_directed(torch.stack(grads), Sobolev(0.3))
    changes = torch.stack([b - p.detach() for b, p in zip(before, params, strict=True)])
    assert torch.allclose(changes, 0.5 * expected, atol=1e-6)
    directed = torch.stack([p.grad for p in params])
    assert torch.allclose(directed, expected if what == "gradient" else torch.stack(grads), atol=1e-6)


def test_along_depth_refuses_a_network_without_equal_blocks():
    with pytest.raises(ValueError, match="no two convolutions of equal shape are 6 parameters apart"):
        variants.along_depth([weight()], lr=1.0, lam=0.1)

"""Optimizers whose step clears the gradients, as HeavyBall's do: the update is directed all the same."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import cdgrad


class Clearing(torch.optim.SGD):
    """SGD that leaves no gradient behind, as HeavyBall's optimizers."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
        return loss


def heavyball_adamw(parameters, **options):
    heavyball = pytest.importorskip("heavyball")
    heavyball.utils.compile_mode = None
    return heavyball.AdamW(parameters, lr=0.01, **options)


def clearing(parameters, **options):
    return Clearing(parameters, lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "make",
    [
        clearing,
        pytest.param(
            heavyball_adamw, marks=pytest.mark.skipif(not find_spec("heavyball"), reason="no heavyball")
        ),
    ],
)
def test_the_update_is_directed_and_statistics_come_before_the_step(make):
    attached, by_hand, plain = (trained(make, how) for how in ("attached", "by hand", "plain"))
    torch.testing.assert_close(attached, by_hand, rtol=0, atol=1e-6)
    assert (attached - plain).abs().max() > 1e-3


def trained(make, how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    optimizer = make(model.parameters())
    handle = cdgrad.attach(optimizer, model, "reweighted:lam=3") if how == "attached" else None
    targets = cdgrad.select(model).targets
    for step in range(3):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        if handle:
            assert handle.statistics()
        if how == "by hand":
            for target in targets:
                directed = cdgrad.channel_directed(target.param.grad, cdgrad.ReweightedL2(3), target.dim)
                target.param.grad.copy_(directed)
        optimizer.step()
        assert all(p.grad is None for p in model.parameters())
        assert handle is None or handle.steps == step + 1
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not find_spec("heavyball"), reason="heavyball is not installed")
def test_heavyball_keeps_the_directed_gradient_if_asked():
    model = nn.Conv2d(3, 8, 3)
    optimizer = heavyball_adamw(model.parameters(), consume_grad=False)
    cdgrad.attach(optimizer, model, "reweighted:lam=3")
    model(torch.randn(2, 3, 5, 5)).square().mean().backward()
    expected = cdgrad.channel_directed(model.weight.grad, cdgrad.ReweightedL2(3))
    optimizer.step()
    torch.testing.assert_close(model.weight.grad, expected)

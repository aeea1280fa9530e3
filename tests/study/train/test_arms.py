"""Permutation and centralization against their definitions, with and without closures."""

import dataclasses

import pytest
import torch
from torch import nn

from cdgrad import channel_directed, parse_metric, select
from cdgrad.diagnostics import Alignment, alignment
from cdgrad.study.train.arms import attach_arm, channel_orders, direct_and_sum

SOBOLEV = "sobolev:lam=0.01"
step_kinds = pytest.mark.parametrize("closure", [False, True], ids=["step", "closure"])


class Net(nn.Module):
    """A convolution of each kind, a depthwise one, and a linear head."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.up(self.depthwise(self.grouped(self.plain(x)).tanh()).tanh())
        return self.head(self.norm(x).tanh().mean((2, 3)))


@pytest.fixture
def setting(tiny):
    return lambda metric="none", **changes: dataclasses.replace(
        tiny.setting("", "sgd"), metric=metric, **changes
    )


def stepped(setting, seed=0, closure=False):
    """Ordinary gradients, what the optimizer saw (SGD at rate 1 moves the weights by it), the handle."""
    torch.manual_seed(0)
    net = Net().double()
    images = torch.randn(5, 3, 9, 9, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = attach_arm(setting, optimizer, net, seed)
    before, raw = {name: p.detach().clone() for name, p in net.named_parameters()}, {}

    def evaluate():
        net.zero_grad()
        net(images).square().sum().backward()
        raw.update({name: p.grad.clone() for name, p in net.named_parameters()})

    if closure:
        optimizer.step(evaluate)
    else:
        evaluate()
        optimizer.step()
    return raw, {name: before[name] - p.detach() for name, p in net.named_parameters()}, handle


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@step_kinds
@pytest.mark.parametrize("direction", ["output", "input"])
def test_permute_conjugates_the_operator_by_one_order_per_tensor(setting, closure, direction):
    raw, seen, handle = stepped(setting(SOBOLEV, permute=True, direction=direction), closure=closure)
    metric = parse_metric(SOBOLEV)
    targets = {target.name: target for target in handle.selection.targets}
    orders = channel_orders(handle.selection, 0)
    assert {"plain.weight", "grouped.weight", "up.weight"} <= targets.keys()
    for name, g in raw.items():
        if name not in targets:
            assert_close(seen[name], g)
            continue
        target = targets[name]
        order = orders[target.param]
        size, each = g.shape[target.dim], g.shape[target.dim] // target.groups
        assert order.sort().values.tolist() == list(range(size))
        assert (order // each).tolist() == [g for g in range(target.groups) for _ in range(each)]
        shuffled = channel_directed(g.index_select(target.dim, order), metric, target.dim, target.groups)
        assert_close(seen[name], shuffled.index_select(target.dim, order.argsort()))
        if each > 3:  # few channels may by chance keep their order, or reverse it
            assert not torch.allclose(seen[name], channel_directed(g, metric, target.dim, target.groups))


def test_the_seed_draws_the_order(setting):
    arm = setting(SOBOLEV, permute=True)
    (_, first, _), (_, again, _), (_, other, _) = (stepped(arm, seed) for seed in (0, 0, 1))
    assert torch.equal(first["plain.weight"], again["plain.weight"])
    assert not torch.allclose(first["plain.weight"], other["plain.weight"])


def test_the_reweighted_metric_cannot_tell_the_order(setting):
    _, permuted, _ = stepped(setting("reweighted:lam=3", permute=True))
    _, ordered, _ = stepped(setting("reweighted:lam=3"))
    for name, seen in permuted.items():
        assert_close(seen, ordered[name])


def centralized(name, g):
    """The definition, filter by filter."""
    out = g.clone()
    if name == "up.weight":  # (inputs, outputs per group, ...), 2 groups of 4 inputs
        for group in (slice(0, 4), slice(4, 8)):
            for o in range(g.shape[1]):
                out[group, o] -= g[group, o].mean()
    elif g.ndim > 1:
        for o in range(len(g)):
            out[o] -= g[o].mean()
    return out


@step_kinds
def test_centralize_removes_the_mean_of_every_filter(setting, closure):
    raw, seen, _ = stepped(setting(centralize=True), closure=closure)
    for name, g in raw.items():
        assert_close(seen[name], centralized(name, g))
    assert not torch.allclose(seen["depthwise.weight"], raw["depthwise.weight"])


@step_kinds
@pytest.mark.parametrize("rescale", ["none", "norm"])
def test_centralize_comes_before_the_metric_and_its_rescaling(setting, closure, rescale):
    metric = parse_metric("reweighted:lam=3")
    arm = setting(str(metric), centralize=True, direction="input", rescale=rescale)
    raw, seen, _ = stepped(arm, closure=closure)
    directed = {t.name: t for t in select(Net(), direction="input").targets}
    for name, g in raw.items():
        expected = centralized(name, g)
        if name in directed:
            t, norm = directed[name], expected.norm()
            expected = channel_directed(expected, metric, t.dim, t.groups)
            expected *= norm / expected.norm() if rescale == "norm" else 1
        assert_close(seen[name], expected)


def test_an_arm_that_changes_nothing_attaches_nothing(setting):
    raw, seen, handle = stepped(setting())
    assert handle is None
    for name, g in raw.items():
        assert_close(seen[name], g)


@pytest.mark.parametrize(
    "changes", [{"metric": SOBOLEV}, {"metric": SOBOLEV, "permute": True}, {"centralize": True}]
)
def test_the_comparison_is_of_what_the_arm_changes_and_the_step_does_not_repeat_it(setting, changes):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = attach_arm(setting(**changes), optimizer, net, 0)
    net(torch.randn(5, 3, 9, 9)).square().sum().backward()
    raw = [t.param.grad.clone() for t in handle.selection.targets]
    compared = Alignment.of(direct_and_sum(handle))
    after = [t.param.grad.clone() for t in handle.selection.targets]
    assert compared == alignment(raw, after)
    assert compared[0] < 0.999
    optimizer.step()
    for target, grad in zip(handle.selection.targets, after, strict=True):
        assert torch.equal(target.param.grad, grad)


def test_an_attachment_twice_is_refused(setting):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach_arm(setting(centralize=True), optimizer, net, 0)
    with pytest.raises(ValueError, match="already attached"):
        attach_arm(setting(SOBOLEV, permute=True), optimizer, net, 0)


def test_a_model_without_convolutions_can_be_centralized(setting):
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = attach_arm(setting(centralize=True), optimizer, net, 0)
    net(torch.randn(4, 3)).square().sum().backward()
    handle.apply()
    torch.testing.assert_close(net.weight.grad.mean(1), torch.zeros(2))

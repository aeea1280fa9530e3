"""Attempts at making the method work, each a factory of an ordinary optimizer with a hook of its own.

A study names one as ``optimizer.name = "variants:wiener"``. None of this is part of the package: what
a study does not show to beat the tuned baseline stays here. Weights of more than two axes are taken
for convolutions, with their output channels along axis 0, which holds for the networks studied here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from cdgrad import ReweightedL2, Sobolev, channel_directed
from cdgrad.diagnostics import similarity_order

BASES: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adamw": AdamW}


def wiener(
    params: Iterable[nn.Parameter], lr: float, base: str = "sgd", beta: float = 0.9, **rest: Any
) -> Optimizer:
    """The mean over channels against the deviation from it, each weighted by its signal's share.

    Running averages of decay `beta` hold the gradient's coefficients m and their squared norm q. With
    independent noise, |m|^2 has expectation S + N (1 - beta) / (1 + beta) and q has S + N, which give
    the signal S and the noise N of either part; its factor is S / (S + N). The gradient keeps its norm,
    so only the balance of the two parts changes.
    """
    optimizer = BASES[base](params, lr=lr, **rest)
    running: dict[Tensor, tuple[Tensor, Tensor]] = {}
    done = 0

    def direct(*_: Any) -> None:
        nonlocal done
        done += 1
        for weight in _convolutions(optimizer):
            g = _gradient(weight)
            average, power = running.get(weight, (torch.zeros_like(g), torch.zeros(2)))
            average, power = torch.lerp(g, average, beta), torch.lerp(_powers(g), power, beta)
            running[weight] = average, power
            started = 1 - beta**done
            factors = wiener_factors(average / started, power / started, beta, done)
            mean = g.mean(0, keepdim=True)
            directed = factors[0] * mean + factors[1] * (g - mean)
            g.copy_(directed * (g.norm() / directed.norm().clamp_min(1e-30)))

    optimizer.register_step_pre_hook(direct)
    return optimizer


def wiener_factors(average: Tensor, power: Tensor, beta: float, steps: int) -> Tensor:
    """S / (S + N) of the mean and of the deviation, at least 0.01; 1 for both until there is a noise.

    Args:
        average: the gradient's exponential average over `steps` steps, without bias.
        power: that of the squared norms of mean and deviation, shape (2,).
        beta: the decay of both.
        steps: how many gradients they have seen.
    """
    if steps < 2:
        return torch.ones(2)
    # The sum of the squared weights of an exponential average: the share of the noise that is left.
    left = (1 - beta) / (1 + beta) * (1 + beta**steps) / (1 - beta**steps)
    noise = (power - _powers(average)) / (1 - left)
    return (1 - noise / power.clamp_min(1e-30)).clamp(0.01, 1.0)


def annealed(
    params: Iterable[nn.Parameter],
    lr: float,
    metric: str,
    lam: float,
    steps: int,
    base: str = "sgd",
    **rest: Any,
) -> Optimizer:
    """The metric falls to the ordinary one in a straight line over the first half of `steps`."""
    optimizer = BASES[base](params, lr=lr, **rest)
    done = 0

    def direct(*_: Any) -> None:
        nonlocal done
        left = max(0.0, 1 - done / (steps / 2))
        done += 1
        if left == 0:
            return
        now = Sobolev(lam * left) if metric == "sobolev" else ReweightedL2(lam**left)
        for weight in _convolutions(optimizer):
            _gradient(weight).copy_(channel_directed(_gradient(weight), now))

    optimizer.register_step_pre_hook(direct)
    return optimizer


def divided(
    params: Iterable[nn.Parameter], lr: float, divisor: float, base: str = "sgd", **rest: Any
) -> Optimizer:
    """The ordinary gradient, with the learning rate of all convolutions divided by `divisor`.

    A control for the re-weighted metric of lam = `divisor`, which divides every mode of a convolution's
    gradient but the mean over the channels: here the mean is divided, too.
    """
    weights = list(params)
    convolutions = [p for p in weights if p.ndim > 2]
    others = [p for p in weights if p.ndim <= 2]
    groups = [{"params": convolutions, "lr": lr / divisor}, {"params": others, "lr": lr}]
    return BASES[base](groups, **rest)


def on_update(
    params: Iterable[nn.Parameter], lr: float, metric: str, lam: float, base: str = "adamw", **rest: Any
) -> Optimizer:
    """The operator on what the optimizer makes of the gradient, not on the gradient."""
    optimizer = BASES[base](params, lr=lr, **rest)
    operator = Sobolev(lam) if metric == "sobolev" else ReweightedL2(lam)
    before: dict[Tensor, Tensor] = {}

    def remember(*_: Any) -> None:
        before.update({weight: weight.detach().clone() for weight in _convolutions(optimizer)})

    @torch.no_grad()
    def direct(*_: Any) -> None:
        for weight, old in before.items():
            weight.copy_(old + channel_directed(weight - old, operator))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(direct)
    return optimizer


def sorted_sobolev(
    params: Iterable[nn.Parameter], lr: float, lam: float, base: str = "sgd", refresh: int = 10, **rest: Any
) -> Optimizer:
    """Sobolev along an order of the channels in which neighbors have similar weights.

    The order is a nearest-neighbor chain, found anew every `refresh` steps.
    """
    optimizer = BASES[base](params, lr=lr, **rest)
    operator, orders, done = Sobolev(lam), dict[Tensor, Tensor](), 0

    def direct(*_: Any) -> None:
        nonlocal done
        for weight in _convolutions(optimizer):
            if done % refresh == 0:
                orders[weight] = similarity_order(weight.detach())
            order, g = orders[weight], _gradient(weight)
            g[order] = channel_directed(g[order], operator)
        done += 1

    optimizer.register_step_pre_hook(direct)
    return optimizer


def smooth_start(
    params: Iterable[nn.Parameter], lr: float, lam: float, base: str = "sgd", **rest: Any
) -> Optimizer:
    """Sobolev from initial weights that were smoothed along the channel by the same operator.

    Each weight keeps its norm. The smoothing happens here, when the optimizer is made.
    """
    optimizer = BASES[base](params, lr=lr, **rest)
    operator = Sobolev(lam)
    with torch.no_grad():
        for weight in _convolutions(optimizer):
            smooth = channel_directed(weight.detach(), operator)
            weight.copy_(smooth * (weight.norm() / smooth.norm()))

    def direct(*_: Any) -> None:
        for weight in _convolutions(optimizer):
            _gradient(weight).copy_(channel_directed(_gradient(weight), operator))

    optimizer.register_step_pre_hook(direct)
    return optimizer


def along_depth(
    params: Iterable[nn.Parameter],
    lr: float,
    lam: float,
    what: str = "gradient",
    kind: str = "sobolev",
    block: int = 6,
    base: str = "sgd",
    **rest: Any,
) -> Optimizer:
    """The operator along a stack of equal blocks, instead of along the channels of one layer.

    The convolution at the same place of consecutive equal blocks is a function of depth, sampled once a
    block. Smoothing of updates along depth is proposed in arXiv 2606.30813, with a window; the operators
    here are not taken from there.

    Args:
        params: of the network, in its order.
        lr: learning rate.
        lam: of the Sobolev metric on the stack; of a window: the weight w of
            u_l <- (1 - w) u_l + w mean(u_(l-1), u_l, u_(l+1)), where a mean at an end is over two blocks.
        what: ``"gradient"``, before the optimizer, or ``"update"``, what it changed.
        kind: ``"sobolev"``, ``"reweighted"`` or ``"window"``.
        block: number of parameters of a block; 6 for two convolutions with batch norm each.
        base: a key of `BASES`.
        **rest: other arguments of the optimizer.
    """
    params = list(params)
    optimizer = BASES[base](params, lr=lr, **rest)
    groups = stacks(params, block)
    if not groups:
        raise ValueError(f"no two convolutions of equal shape are {block} parameters apart")

    def remember(*_: Any) -> None:
        before.update({w: w.detach().clone() for stack in groups for w in stack})

    def direct_gradient(*_: Any) -> None:
        for stack in groups:
            _write([_gradient(w) for w in stack], smooth_stack([_gradient(w) for w in stack], kind, lam))

    @torch.no_grad()
    def direct_update(*_: Any) -> None:
        for stack in groups:
            steps = smooth_stack([w - before[w] for w in stack], kind, lam)
            _write(stack, [before[w] + step for w, step in zip(stack, steps, strict=True)])

    before: dict[Tensor, Tensor] = {}
    if what == "gradient":
        optimizer.register_step_pre_hook(direct_gradient)
    else:
        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(direct_update)
    return optimizer


def stacks(params: Sequence[Tensor], block: int) -> list[list[Tensor]]:
    """Convolutions of equal shape, each `block` parameters behind the one before, in lists of two or more."""
    found: list[list[Tensor]] = []
    placed: dict[int, list[Tensor]] = {}
    for at, param in enumerate(params):
        if param.ndim <= 2:
            continue
        before = placed.get(at - block)
        stack = before if before is not None and before[0].shape == param.shape else list[Tensor]()
        if not stack:
            found.append(stack)
        stack.append(param)
        placed[at] = stack
    return [stack for stack in found if len(stack) > 1]


def smooth_stack(tensors: Sequence[Tensor], kind: str, lam: float) -> list[Tensor]:
    """The operator of `along_depth` on tensors of equal shape, the first block's first."""
    stack = torch.stack(list(tensors))
    if kind != "window":
        return list(channel_directed(stack, Sobolev(lam) if kind == "sobolev" else ReweightedL2(lam)))
    sums, counts = stack.clone(), torch.ones(len(stack))
    sums[1:] += stack[:-1]
    sums[:-1] += stack[1:]
    counts[1:] += 1
    counts[:-1] += 1
    return list(torch.lerp(stack, sums / counts.view(-1, *[1] * (stack.ndim - 1)), lam))


@torch.no_grad()
def _write(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def _powers(g: Tensor) -> Tensor:
    """Squared norms of the mean over the channels, as a part of g, and of the deviation from it."""
    mean = g.mean(0, keepdim=True)
    return torch.stack([len(g) * mean.square().sum(), (g - mean).square().sum()])


def _convolutions(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.ndim > 2 and len(p) > 1]


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise ValueError(f"a convolution of shape {tuple(weight.shape)} has no gradient at its step")
    return weight.grad

"""What users do on a GPU, against the same by hand: attached, captured, rescaled, and a study's run."""

# torch types its optimizers in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdgrad.attachment import attach
from cdgrad.bench.gpu.operator import Items
from cdgrad.bench.gpu.setup import Setup, captured, relative_error
from cdgrad.bench.gpu.study_loop import SOURCE, noise
from cdgrad.bench.gpu.training import graph_layers
from cdgrad.metrics import MeanSobolev, Metric, Sobolev, with_lam
from cdgrad.ops import eager
from cdgrad.ops.local import as_channels
from cdgrad.study.spec import LoopSetting, Model, Optimizer, Schedule, Task
from cdgrad.study.train import train

_SGD: Any = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
# A large eps, since Adam divides small gradients by themselves, which makes rounding visible.
_ADAM: Any = partial(torch.optim.Adam, lr=0.1, eps=0.1)
_METRIC = Sobolev(0.01)


def items(setup: Setup) -> Items:
    """By what is done, how far the weights are from those by hand, over the way that they went."""
    check = partial(_difference, setup)
    fused = {} if setup.rehearsal else {"capturable": True}
    return {
        "attached, SGD": partial(check, _SGD),
        "attached, fused SGD": partial(check, partial(_SGD, fused=True)),
        "attached, Adam": partial(check, _ADAM),
        "captured, fused SGD": partial(check, partial(_SGD, fused=True), capture=True),
        "captured, Adam": partial(check, partial(_ADAM, **fused), capture=True),
        "captured, then another lam": partial(check, _SGD, capture=True, lam=0.3),
        "captured, rescaled": partial(check, _SGD, MeanSobolev(0.1), capture=True, rescale="norm"),
        "captured, plain torch operations": partial(check, _SGD, capture=True, backend="eager"),
        "a study's run, captured": partial(_study, setup, "float32"),
        "a study's run, captured, bfloat16": partial(_study, setup, "bfloat16"),
    }


def _difference(
    setup: Setup,
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    metric: Metric = _METRIC,
    *,
    capture: bool = False,
    lam: float | None = None,
    rescale: Literal["none", "norm"] = "none",
    backend: str = "triton",
) -> dict[str, float]:
    torch.manual_seed(0)
    layers = graph_layers(setup)
    model = nn.ModuleList(nn.Conv2d(each.into, each.out, each.kernel, bias=False) for each in layers)
    model.to(setup.device)
    by_hand, start = copy.deepcopy(model), copy.deepcopy(model)
    images = torch.randn(4, 6, 8, 8, device=setup.device)
    optimizer, its_optimizer = make(model.parameters()), make(by_hand.parameters())
    handle = attach(optimizer, model, metric, rescale=rescale, backend=backend)
    step = partial(_step, model, optimizer, images)
    warm = (3 if setup.device.type == "cuda" else 1) if capture else 0
    replay = captured(setup, step, warm) if capture else step
    metrics = [metric] * warm
    for each in (metric, *([with_lam(metric, lam)] if lam else [])):
        handle.metric = each
        for _ in range(2):
            replay()
            metrics.append(each)
    handle.remove()
    for each in metrics:
        _step(by_hand, its_optimizer, images, partial(_direct, metric=each, rescale=rescale))
    return {"difference": _apart(model, by_hand, start)}


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    direct: Callable[[Tensor], None] | None = None,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    losses = [layer(images).sin().square().mean() for layer in model.children()]
    torch.stack(losses).sum().backward()
    for parameter in model.parameters() if direct else ():
        if direct and parameter.grad is not None:
            direct(parameter.grad)
    optimizer.step()


def _direct(grad: Tensor, metric: Metric, rescale: str) -> None:
    exact = grad.double()
    directed: Tensor = eager.directed(as_channels(exact, 0, 1), metric).view_as(exact)
    if rescale == "norm":
        norms: list[Tensor] = [each.square().sum().sqrt() for each in (exact, directed)]
        directed = directed * (norms[0] / norms[1])
    grad.copy_(directed)


def _apart(model: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """|w - w'| / |w' - w_0|."""
    w, exact, before = map(_weights, (model, other, start))
    return relative_error(w - before, exact - before)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def _study(setup: Setup, precision: str) -> dict[str, float]:
    """Weights of short runs, with graphs and without: a part of a batch, augmentation, clipping, averaging.

    Raises:
        RuntimeError: the steps were not captured; with the reason.
    """
    batch, side, epochs = (8, 8, 2) if setup.rehearsal else (64, 32, 4)
    count = 3 * batch + batch // 2
    made: list[Tensor] = []
    for graph in (False, None):
        setting = LoopSetting(
            task=Task(
                SOURCE, train=count, validation=batch, test=batch, augment=("pad-crop", "flip", "cutout")
            ),
            model=Model("resnet8"),
            schedule=Schedule(
                epochs, batch, precision=precision, channels_last=True, graph=graph, clip=1.0, ema=0.9
            ),
            optimizer=Optimizer("torch.optim:SGD", 0.01, {"momentum": 0.9}),
            metric=str(_METRIC),
            evaluate="validation",
        )
        with noise(count + 2 * batch, side):
            outcome = train(setting, 0, lambda epoch, measured: None, device=str(setup.device))
        state = outcome.environment.get("graph", "captured")
        if graph is None and state != "captured":
            raise RuntimeError(state)
        made.append(_weights(outcome.model))
    return {"difference": relative_error(made[1], made[0])}

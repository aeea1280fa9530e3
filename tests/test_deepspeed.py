"""DeepSpeed ZeRO: the documented function directs gradients as one process does. Needs deepspeed on a CPU."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from world import in_worlds

import cdgrad

PAGE = Path(__file__).parents[1] / "docs" / "distributed.md"
METRIC = cdgrad.Sobolev(0.05)
STEPS, ACCUMULATED = 3, 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, padding=1),
        nn.Conv2d(6, 6, 3, groups=2, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 64, 3),
    )


def images(step, micro_batch):
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + micro_batch))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def weights(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def on_one_process(metric):
    model = network()
    optimizer = sgd(model)
    if metric:
        cdgrad.attach(optimizer, model, metric)
    for step in range(STEPS):
        optimizer.zero_grad()
        for k in range(ACCUMULATED):
            (model(images(step, k)).square().mean() / ACCUMULATED).backward()
        optimizer.step()
    return weights(model)


def documented_function():
    (source,) = re.findall(r"```python\n(def direct_zero_gradients.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"cdgrad": cdgrad}
    exec(source, names)
    return names["direct_zero_gradients"]


def on_two_processes(stage):
    import deepspeed

    model = network()
    targets = cdgrad.select(model).targets
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATED,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=sgd(model), config=config)
    with pytest.raises(ValueError, match=r"ZeRO|Zero.*flat"):
        cdgrad.attach(optimizer, model, METRIC)
    direct = documented_function()
    for step in range(STEPS):
        for k in range(ACCUMULATED):
            loss = engine(images(step, k).chunk(2)[dist.get_rank()]).square().mean()
            engine.backward(loss)
            if engine.is_gradient_accumulation_boundary():
                direct(targets, METRIC)
            engine.step()
    with deepspeed.zero.GatheredParameters([*engine.module.parameters()], enabled=stage == 3):
        return weights(engine.module)


def check_every_stage():
    os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "DS_ACCELERATOR": "cpu"}
    expected, plain = on_one_process(METRIC), on_one_process(None)
    assert (expected - plain).abs().max() > 1e-3
    for stage in (1, 2, 3):
        torch.testing.assert_close(on_two_processes(stage), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
def test_the_documented_function_equals_one_process_at_every_stage():
    in_worlds((2,), check_every_stage)

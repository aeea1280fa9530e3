"""torch.compile around an attached optimizer: the same numbers, a known number of graphs."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import cdgrad


def train(compiled):
    """Weights after six steps, lam changing in the last three, and the graphs compiled so far at each."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = CompileCounter()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = cdgrad.attach(optimizer, model, "sobolev:lam=0.1")
    images = torch.randn(4, 3, 8, 8)
    # A compiled function still calls optimizer.step, whose frame is compiled in its turn.
    step = torch.compile(optimizer.step, backend=graphs) if compiled == "optimizer step" else optimizer.step

    def training_step():
        optimizer.zero_grad()
        model(images).square().mean().backward()
        step()

    if compiled == "training step":
        training_step = torch.compile(training_step, backend=graphs)
    counts = []
    for i in range(6):
        if i >= 3:
            handle.metric = cdgrad.Sobolev(0.1 + i)
        training_step()
        counts.append(graphs.frame_count)
    return nn.utils.parameters_to_vector(model.parameters()).detach(), counts


# The first step of SGD makes the momentum, so it has a graph of its own.
@pytest.mark.parametrize(
    ("compiled", "graphs"), [("optimizer step", [1] + [2] * 5), ("training step", [2] + [3] * 5)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_compiled_steps_give_the_same_numbers_and_lam_does_not_recompile(compiled, graphs):
    want, _ = train(None)
    got, counts = train(compiled)
    assert counts == graphs
    assert torch.equal(got, want)


def clipped(model, optimizer, handle, backward, step):
    backward()
    handle.apply()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


def by_closure(model, optimizer, handle, backward, step):
    optimizer.step(backward)


def measured(model, optimizer, handle, backward, step):
    handle.metric = cdgrad.Sobolev(0.1 + step)
    handle.enabled = step < 3
    backward()
    handle.statistics()
    optimizer.step()


@pytest.mark.parametrize("way", [clipped, by_closure, measured])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_compiled_step_may_use_the_handle_and_a_closure(way):
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        handle = cdgrad.attach(optimizer, model, "sobolev:lam=0.1")
        images = torch.randn(4, 3, 8, 8)

        def backward(optimizer=optimizer, model=model, images=images):
            optimizer.zero_grad()
            loss = model(images).square().mean()
            loss.backward()
            return loss

        step = torch.compile(way, backend="eager") if compiled else way
        for i in range(4):
            step(model, optimizer, handle, backward, i)
        results.append(nn.utils.parameters_to_vector(model.parameters()).detach())
        assert handle.steps == 4
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("metric", ["reweighted:lam=3", "sobolev:lam=0.1,boundary=periodic"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_compiled_function_that_directs_has_its_value_and_derivative(metric):
    g, v = torch.randn(2, 9, 4)
    g.requires_grad_()
    compiled = torch.compile(lambda x: 2 * cdgrad.channel_directed(x, metric) + 1, backend="aot_eager")
    value = compiled(g)
    value.backward(v)
    torch.testing.assert_close(value, 2 * cdgrad.channel_directed(g, metric) + 1)
    torch.testing.assert_close(g.grad, cdgrad.channel_directed(2 * v, metric))

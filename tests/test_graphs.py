"""Captured steps, with the capture simulated: launches are recorded, and replayed on the same memory."""

import gc
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from cdgrad import attach
from cdgrad._torch_private import captured_by
from cdgrad.ops import graphs
from cdgrad.reference import directed

pytest.importorskip("triton")
from cdgrad.metrics import parse_metric
from cdgrad.ops.triton import launch


@pytest.fixture
def capture(monkeypatch):
    """Run a function as a CUDA graph would capture it; what it returns replays the launches."""
    monkeypatch.setattr(graphs, "_kept", set())
    kernel = launch.named_kernel

    def run(function):
        recorded = []

        class Recorder:
            def __init__(self, name):
                self.name = name

            def __getitem__(self, grid):
                def start(*args, **kwargs):
                    recorded.append((self.name, grid, args, kwargs))
                    kernel(self.name)[grid](*args, **kwargs)

                return start

        with monkeypatch.context() as inside:
            inside.setattr(graphs, "capturing", lambda: True)
            inside.setattr(launch, "capturing_on", lambda device: True)
            inside.setattr(launch, "named_kernel", Recorder)
            function()

        def replay():
            for name, grid, args, kwargs in recorded:
                kernel(name)[grid](*args, **kwargs)

        return replay

    return run


def captured_step(capture, metric, **options):
    """An attached convolution whose second step is captured: weight's gradient, handle, replay."""
    torch.manual_seed(0)
    model = nn.Conv2d(2, 6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(optimizer, model, metric, **{"backend": "triton", **options})
    model.weight.grad = torch.randn_like(model.weight)
    for _ in range(2):  # the first step is watched
        optimizer.step()
    return model.weight.grad, handle, capture(optimizer.step)


@pytest.mark.parametrize(
    ("metric", "other"),
    [
        ("reweighted:lam=3", "reweighted:lam=0.5"),
        ("sobolev:lam=0.1", "sobolev:lam=2"),
        ("mean-sobolev:lam=0.1,boundary=periodic", "mean-sobolev:lam=4,boundary=periodic"),
    ],
)
def test_replays_see_another_lam(capture, metric, other):
    grad, handle, replay = captured_step(capture, metric)
    for each in (metric, other):
        handle.metric = each
        grad.copy_(torch.randn_like(grad))
        expected = torch.from_numpy(directed(grad.numpy(), parse_metric(each)))
        replay()
        torch.testing.assert_close(grad, expected.float(), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"handle\.enabled was changed after a CUDA graph captured a step"):
        handle.enabled = False


def test_another_lam_waits_for_the_device_once(capture, monkeypatch):
    """For replays on any stream, then for its own copy alone; not where another part's lam changes."""
    _, handle, _ = captured_step(capture, "sobolev:lam=0.1")
    (plan,) = graphs._kept
    (batch,) = plan._batches
    waits = []
    stream = SimpleNamespace(synchronize=lambda: waits.append("copy"))
    monkeypatch.setattr(batch, "device", torch.device("cuda:0"))
    monkeypatch.setattr(launch, "capturing_on", lambda device: False)
    monkeypatch.setattr(launch, "stream_handle", lambda device: 7)
    monkeypatch.setattr(launch, "write", lambda *_: waits.append("write"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append("device"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    handle.metric = "sobolev:lam=2"
    assert waits == ["device", "write", "copy"]
    (its_plan,) = handle._gradients._operate._captured
    its_plan.follow(its_plan.metrics)
    assert len(waits) == 3


@pytest.mark.parametrize("metric", ["reweighted:lam=3", "sobolev:lam=0.1"])
def test_rescaled_gradients_keep_their_norm_within_the_plan(metric):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1, bias=False), nn.Conv2d(6, 5, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(optimizer, model, metric, rescale="norm", backend="triton")
    for scale in (1.0, 1e-30, 0.0):
        expected = []
        for layer in model:
            layer.weight.grad = grad = scale * torch.randn_like(layer.weight)
            exact = torch.from_numpy(directed(grad.double().numpy(), parse_metric(metric)))
            expected.append(exact * grad.double().norm() / exact.norm() if scale else exact)
        optimizer.step()
        for layer, want in zip(model, expected, strict=True):
            torch.testing.assert_close(layer.weight.grad, want.float(), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("current", [0, 1])
def test_the_stream_that_counts_is_that_of_the_gradients_device(monkeypatch, current):
    """torch asks for the current stream of the current device; here that of device 1 is captured."""
    devices = [current]

    @contextmanager
    def device(chosen):
        devices.append(chosen.index)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: devices[-1] == 1)
    assert [graphs.capturing_on(torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")] == [0, 1, 0]
    assert devices == [current]


@pytest.mark.parametrize("capturing", [False, True])
def test_cached_weights_outlive_what_another_stream_reads(monkeypatch, capturing):
    """torch's allocator is told of the stream that reads; of a captured graph they are kept for good."""
    read = []
    weights = [Mock(record_stream=read.append) for _ in range(2)]
    monkeypatch.setattr(graphs, "_kept", kept := set())
    monkeypatch.setattr(graphs, "capturing_on", lambda device: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    graphs.keep_until_read(torch.device("cuda:1"), iter(weights))
    assert (kept, read) == (({*weights}, []) if capturing else (set(), ["the stream of cuda:1"] * 2))


@pytest.mark.parametrize("other", ["l2", "reweighted:lam=3", "sobolev:lam=0.1,boundary=periodic"])
def test_what_replays_cannot_see_is_refused(capture, other):
    _, handle, _ = captured_step(capture, "sobolev:lam=0.1")
    handle.optimizer.step()  # which is not captured
    with pytest.raises(RuntimeError, match=r"handle\.metric was changed after a CUDA graph captured a step"):
        handle.metric = other
    assert str(handle.metric) == "sobolev:lam=0.1"
    with pytest.raises(RuntimeError, match=r"handle\.schedule was changed after"):
        handle.schedule(lambda step: 0.1)


def test_lam_of_a_backend_whose_replays_hold_it_is_refused(capture):
    _, handle, _ = captured_step(capture, "reweighted:lam=3", backend="eager")
    handle.metric = "reweighted:lam=3"
    with pytest.raises(RuntimeError, match=r"handle\.metric was changed after a CUDA graph captured a step"):
        handle.metric = "reweighted:lam=2"


def test_what_a_known_graph_reads_lives_as_long_as_the_graph(capture):
    """As in a study, whose workers capture steps of one run after the other."""
    graph = Mock()
    with captured_by(graph):
        _, handle, replay = captured_step(capture, "sobolev:lam=0.1")
    (plan,) = map(weakref.ref, graphs._kept_by[graph])
    assert not graphs._kept
    del handle, replay
    gc.collect()
    assert plan() is not None
    del graph
    gc.collect()
    assert plan() is None


def test_a_capture_that_failed_forbids_nothing(capture):
    """It has no replays that would not see a change."""
    model = nn.Conv2d(2, 6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(optimizer, model, "sobolev:lam=0.1", backend="triton")
    model.weight.grad = torch.randn_like(model.weight)
    with pytest.raises(RuntimeError, match="run one step before the capture"):
        capture(optimizer.step)
    handle.enabled = False
    handle.metric = "reweighted:lam=3"
    handle.schedule(lambda step: 0.1)


def test_a_captured_plan_outlives_the_handle(capture):
    _, handle, _ = captured_step(capture, "sobolev:lam=0.1")
    handle.remove()
    assert len(graphs._kept) == 1

"""Steps as graphs, by a stand-in for CUDA's that replays operators on the CPU (`recorded_graph`)."""

from __future__ import annotations

import dataclasses
import gc
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from recorded_graph import RecordedGraph, record_cpu_kernels
from torch import nn

from cdgrad.study import StudyError
from cdgrad.study.spec import Model, Optimizer, Schedule, parse
from cdgrad.study.train import execution, loop, step
from cdgrad.study.train.loop import train

SGD = Optimizer("torch.optim:SGD", 0.1, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3})


class Watched(execution.Captured):
    """Remembers the graphs that it made."""

    def __init__(self, state):
        self.made: list[RecordedGraph] = []
        self.state = state
        super().__init__(self._make)

    def _make(self):
        self.made.append(RecordedGraph(self._memory))
        return self.made[-1]

    def _memory(self):
        buffers = self.state.buffers
        momenta = [v for of in self.state.optimizer.state.values() for v in of.values() if v is not None]
        return [*self.state.model.state_dict().values(), *momenta, buffers.loss, buffers.wrong]


@pytest.fixture
def captured(monkeypatch):
    """Executes every run by recorded graphs; a list of the executions."""
    record_cpu_kernels(monkeypatch)
    executions: list[Watched] = []

    def choose(state):
        assert not execution.prepare(state.optimizer, state.device)
        state.rates.move_to(state.device)
        executions.append(Watched(state))
        return executions[-1], ""

    def start():
        monkeypatch.setattr(loop, "choose", choose)
        return executions

    return start


@pytest.fixture
def setting(tiny):
    def make(schedule=None, augment=(), **changes):
        base = tiny.setting("", "sgd")
        # 48 images: two whole batches and a part, five epochs, a rate that changes in every step.
        longer = dataclasses.replace(base.schedule, epochs=5, batch=20, warmup=1)
        tables = {
            "schedule": dataclasses.replace(longer, **(schedule or {})),
            "task": dataclasses.replace(base.task, augment=augment),
            "optimizer": SGD,
        }
        return dataclasses.replace(base, **(tables | changes))

    return make


def weights(outcome):
    return {key: value.detach() for key, value in outcome.model.state_dict().items()}


def assert_equal_to_rounding(one, other):
    assert (one.status, one.error) == (other.status, other.error)
    for a, b in zip(one.epochs, other.epochs, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for (key, a), b in zip(weights(one).items(), weights(other).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=key)


def run(setting, **options):
    return train(setting, 3, lambda epoch, measured: None, **options)


def dropout_network(image_shape, classes):
    network = nn.Sequential(
        nn.Conv2d(image_shape[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )
    network(torch.zeros(2, *image_shape))
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"metric": "reweighted:lam=3"},
        {"metric": "sobolev:lam=0.01", "permute": True, "rescale": "norm"},
        {"metric": "mean-sobolev:lam=0.05", "schedule": {"clip": 0.5}},
        {"centralize": True, "schedule": {"accumulate": 2, "label_smoothing": 0.1}},
        {"schedule": {"ema": 0.9}},
        {"schedule": {"batch": 16, "decay": "none", "warmup": 0}},
        {"augment": ("pad-crop", "flip", "cutout")},
        {"model": Model(f"{__name__}:dropout_network")},
        {"rounding": 3},
        {"schedule": {"test_every_epoch": True}},
        {"schedule": {"precision": "bfloat16", "channels_last": True}},
        {"optimizer": Optimizer("torch.optim:AdamW", 0.01, {"fused": True})},
    ],
    ids=str,
)
def test_replayed_steps_give_the_numbers_of_steps_made_at_once(setting, captured, changes):
    changed = setting(**changes)
    plain = run(changed)
    executions = captured()
    graphs = run(changed)
    assert_equal_to_rounding(graphs, plain)
    (execution,) = executions
    assert execution.refusal == ""
    # Of whole batches, of the last one of an epoch, and of each split that is evaluated in every epoch.
    assert len(execution.made) == 3 + changed.schedule.test_every_epoch
    assert min(graph.replays for graph in execution.made) >= 3


def interrupt_third_epoch(setting, checkpoint):
    def on_epoch(epoch, measured):
        if epoch > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(setting, 3, on_epoch, checkpoint=checkpoint, every=0)


def test_a_captured_run_that_was_killed_resumes_to_the_same_bits(setting, captured, tmp_path):
    changed = setting({"ema": 0.9}, augment=("flip",), model=Model(f"{__name__}:dropout_network"))
    captured()
    whole = run(changed)
    interrupt_third_epoch(changed, tmp_path / "run.pt")
    resumed = run(changed, checkpoint=tmp_path / "run.pt")
    assert (resumed.error, resumed.epochs) == (whole.error, whole.epochs)
    for a, b in zip(weights(resumed).values(), weights(whole).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_checkpoint_of_steps_made_at_once_resumes_as_graphs(setting, captured, tmp_path, name):
    optimizer = SGD if name == "SGD" else Optimizer("torch.optim:AdamW", 0.01, {"fused": True})
    changed = setting(optimizer=optimizer)
    whole = run(changed)
    interrupt_third_epoch(changed, tmp_path / "run.pt")
    captured()
    assert_equal_to_rounding(run(changed, checkpoint=tmp_path / "run.pt"), whole)


def test_what_cannot_be_captured_is_executed_at_once_and_says_why(setting, monkeypatch):
    changed = setting()
    plain, executions = run(changed), []

    def choose(state):
        state.rates.move_to(state.device)  # SGD that is not fused reads its rate on the host
        executions.append(Watched(state))
        return executions[-1], ""

    monkeypatch.setattr(loop, "choose", choose)
    assert_equal_to_rounding(run(changed), plain)
    (execution,) = executions
    assert execution.refusal.startswith("RuntimeError: aten._local_scalar_dense.default is not permitted")
    assert len(execution.made) == 1
    assert loop._graphs(execution, "").startswith("not captured: RuntimeError: aten._local")


def test_graphs_on_the_cpu_are_refused(setting):
    with pytest.raises(StudyError, match=r"graph = true needs a CUDA device, and this run is on cpu"):
        run(setting({"graph": True}))
    assert "graph" not in run(setting({"graph": False, "epochs": 2})).environment


def test_the_key_is_true_false_or_absent_and_changes_no_old_fingerprint(tiny, tiny_text):
    assert tiny.setting("", "sgd").schedule.graph is None
    for text, value in (("true", True), ("false", False)):
        spec = parse(tiny_text.replace("epochs = 1", f"epochs = 1\ngraph = {text}"), "tiny")
        assert spec.setting("", "sgd").schedule.graph is value
    with pytest.raises(StudyError, match=r"schedule\.graph must be true or false; got 1"):
        parse(tiny_text.replace("epochs = 1", "epochs = 1\ngraph = 1"), "tiny")


def network():
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("SGD", {}, ""),
        ("Adam", {}, ""),
        ("AdamW", {}, ""),
        ("RMSprop", {}, ""),
        ("NAdam", {}, ""),
        ("SGD", {"foreach": True}, "SGD reads its learning rate on the host"),
        ("SGD", {"fused": False}, "SGD reads its learning rate on the host"),
        ("Adagrad", {}, "Adagrad has no option capturable"),
        ("LBFGS", {}, "LBFGS has no option capturable"),
    ],
)
def test_optimizers_that_count_on_the_host_are_not_captured(name, arguments, reason):
    optimizer = getattr(torch.optim, name)(network().parameters(), lr=0.1, **arguments)
    assert execution.prepare(optimizer, torch.device("cpu")).startswith(reason)
    assert bool(execution.prepare(optimizer, torch.device("cpu"))) == bool(reason)


def test_gradients_of_a_fused_optimizer_have_the_strides_of_their_weights():
    layer = nn.Conv2d(4, 8, 1).to(memory_format=torch.channels_last)
    layer.weight.grad = torch.randn(8, 4).view(8, 4, 1, 1)
    before = layer.weight.grad
    assert before.stride() != layer.weight.stride()
    step.match_strides(torch.optim.SGD(layer.parameters(), lr=0.1))
    assert layer.weight.grad is before
    step.match_strides(torch.optim.SGD(layer.parameters(), lr=0.1, fused=True))
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert layer.weight.grad.data_ptr() == before.data_ptr()
    assert torch.equal(layer.weight.grad, before)


class CountingSGD(torch.optim.SGD):
    """Any subclass may count steps on the host."""


def test_a_subclass_is_not_taken_for_the_optimizer_it_derives_from():
    optimizer = CountingSGD(network().parameters(), lr=0.1)
    assert execution.prepare(optimizer, torch.device("cpu")).startswith(
        "CountingSGD has no option capturable"
    )


class Generator:
    """A random generator of CUDA, as far as a capture uses it."""

    def __init__(self, state):
        self.state = state

    def clone_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state


class Graph:
    registered: ClassVar[list] = []

    def register_generator_state(self, generator):
        self.registered.append(generator)


def test_a_failed_capture_gives_the_generators_their_state_back(monkeypatch):
    device, own = Generator("device, before"), Generator("own, before")
    entered, collects = [], []

    @contextmanager
    def graph(graph, pool, stream):
        entered.append((type(graph), pool, stream))
        device.state = own.state = "capturing"
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "default_generators", (device,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the current stream")
    monkeypatch.setattr(execution, "end_failed_capture", lambda *capture: None)
    steps = execution.CudaGraph([own], "a pool")
    assert Graph.registered == [own]  # torch registers the device's own

    def work():
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        steps.capture(work)
    assert entered == [(Graph, "a pool", "the current stream")]
    assert (device.state, own.state) == ("device, before", "own, before")
    assert gc.isenabled()
    steps.capture(lambda: collects.append(gc.isenabled()))
    assert device.state == "capturing"
    # Freeing what an earlier run left would invalidate the capture.
    assert (collects, gc.isenabled()) == ([False], True)


@pytest.mark.parametrize("open_still", [True, False])
def test_a_failed_capture_says_what_failed_and_closes_its_pool(monkeypatch, open_still):
    @contextmanager
    def graph(graph, pool, stream):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    calls = []

    def end(device, pool):
        calls.append(("end", device, pool))
        if not open_still:
            raise RuntimeError("not currently recording to this pool")

    for name, value in {
        "CUDAGraph": Graph,
        "graph": graph,
        "default_generators": (Generator("device"),),
        "current_device": lambda: 0,
        "current_stream": lambda: "the current stream",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *args: calls.append(("release", *args)))
    execute = execution.Captured(lambda: execution.CudaGraph([], "a pool"))
    done = []

    def work():
        done.append(0)
        if len(done) == 4:
            raise RuntimeError("a copy from the host")

    for _ in range(4):
        execute("step", work)
    assert execution.brief(RuntimeError("a copy from the host")) == execute.refusal
    assert len(done) == 5  # the fourth failed as a graph, and was executed at once
    assert calls == [("end", 0, "a pool"), ("release", 0, "a pool")][: 1 + open_still]


def on_cuda(**changes):
    values = {
        "schedule": Schedule(1, 1),
        "device": torch.device("cuda"),
        "ranks": SimpleNamespace(size=1),
        "optimizer": torch.optim.SGD(network().parameters(), lr=0.1),
        "augmentation": None,
        "rates": SimpleNamespace(move_to=lambda device: None),
    }
    return SimpleNamespace(**(values | changes))


def test_steps_on_cuda_are_graphs_unless_something_speaks_against_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    chosen, refusal = execution.choose(on_cuda())
    assert (type(chosen), refusal) == (execution.Captured, "")
    assert loop._graphs(chosen, refusal) == "captured"
    for changes, reason in (
        ({"schedule": Schedule(1, 1, graph=False)}, "schedule.graph is false"),
        ({"ranks": SimpleNamespace(size=2)}, "several ranks"),
        ({"optimizer": CountingSGD(network().parameters(), lr=0.1)}, "CountingSGD has no option"),
    ):
        chosen, refusal = execution.choose(on_cuda(**changes))
        assert chosen is execution.at_once
        assert refusal.startswith(reason)

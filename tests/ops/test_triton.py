"""The GPU backend, interpreted: what the contract suite does not see."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed_, parse_metric, select_backend
from cdgrad.ops import addresses, eager, graphs, prepare, sobolev_weights
from cdgrad.ops.memory_layout import columns_of
from cdgrad.reference import directed

pytest.importorskip("triton")
from cdgrad.ops.triton import launch, tables
from cdgrad.ops.triton.launch import Plan
from cdgrad.ops.triton.tables import Tile

METRICS = [ReweightedL2(3), *(f(0.1, b) for f in (Sobolev, MeanSobolev) for b in ("free", "periodic"))]
SMALL = {size: Tile(4, 4, 8 if size > 2 else 16, 1) for size in (2, 4, 8)}


@pytest.fixture
def capturing(monkeypatch):
    """Call it, and the current stream is being captured."""
    return lambda: monkeypatch.setattr(launch, "capturing_on", lambda device: True)


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched, by name, in order, but for one that a device's first plan loads."""
    channel_directed_([torch.randn(3, 4)], METRICS[0], backend="triton")
    names = []
    kernel = launch.named_kernel
    monkeypatch.setattr(launch, "named_kernel", lambda name: names.append(name) or kernel(name))
    return names


class Recorder:
    """Stands for a kernel, and keeps the arguments of its launches."""

    launches: list

    def __init__(self, name):
        self.name = name

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append(args)


@pytest.fixture
def arguments(monkeypatch):
    """Of every launch; nothing runs."""
    monkeypatch.setattr(graphs, "_kept", set())
    monkeypatch.setattr(launch, "named_kernel", Recorder)
    monkeypatch.setattr(Recorder, "launches", [], raising=False)
    return Recorder.launches


def error(got, exact):
    """The error in norm, relative to the exact result."""
    return np.linalg.norm(got.double().numpy() - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize(("n", "columns"), [(70, 131), (300, 17), (1500, 9)])
def test_the_tiles_of_the_gpu(metric, n, columns):
    """Many groups of columns beside each other, three, several tiles; more columns than a program holds."""
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)):
        grad = (torch.randn(n, columns) + 1).to(dtype)
        exact = eager.directed(grad.double()[None], metric)[0].numpy()
        Plan([(grad, 0, 1)], metric).run([grad])
        assert error(grad, exact) < bound


@pytest.mark.parametrize("boundary", ["free", "periodic"])
@pytest.mark.parametrize("lam", [1e-6, 1e-2, 1.0, 1e3])
def test_the_error_is_bounded(lam, boundary):
    """In float32 by 1e-6 of the result, in float64 by what the dense solution itself loses."""
    means = torch.tensor([0, 0, 0, 1000, 1000, 1000])
    for n in (2, 33, 70):
        without_boundary = [ReweightedL2(lam)] if boundary == "free" else []
        for metric in (Sobolev(lam, boundary), MeanSobolev(lam, boundary), *without_boundary):
            for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-8)):
                grad = torch.randn(n, 6, dtype=dtype) + means
                exact = directed(grad.double().numpy(), metric)
                Plan([(grad, 0, 1)], metric, SMALL).run([grad])
                for half in (slice(3), slice(3, 6)):
                    assert error(grad[:, half], exact[:, half]) < bound, (n, metric, dtype, half)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_the_error_of_few_channels_is_bounded_in_the_tiles_of_the_gpu(metric):
    """Most rows of a segment and most segments are empty then; half of the columns have a large mean."""
    chance = np.random.default_rng(0)
    for lam in (1e-6, 1e-3, 1.0, 1e3):
        of, grads = dataclasses.replace(metric, lam=lam), []
        for n in (2, 3, 5, 9, 17, 24, 40):
            columns = int(chance.integers(20, 80))
            grad = chance.standard_normal((n, 2 * columns)) + [0, 1000] * columns
            grads.append(torch.as_tensor(grad, dtype=torch.float32))
        exact = [directed(grad.double().numpy(), of) for grad in grads]
        Plan([(grad, 0, 1) for grad in grads], of).run(grads)
        for grad, true in zip(grads, exact, strict=True):
            for first in (0, 1):
                assert error(grad[:, first::2], true[:, first::2]) <= 1e-6, (of, grad.shape, first)


# The interpreter computes in numpy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_column(metric, value):
    """Also where groups of columns share a tile, and in a column of several tiles."""
    for n, columns in ((3, 33), (7, 24), (40, 8)):
        clean = torch.randn(n, columns) + 1
        first, last = clean.clone(), clean.clone()
        first[n - 1, 0] = last[0, columns - 1] = value
        grads = [clean, first, last]
        Plan([(grad, 0, 1) for grad in grads], metric, SMALL).run(grads)
        assert torch.equal(first[:, 1:], clean[:, 1:])
        assert torch.equal(last[:, :-1], clean[:, :-1])
        assert clean.isfinite().all()
        assert not first[:, 0].isfinite().any()
        assert not last[:, -1].isfinite().any()


@pytest.mark.parametrize("boundary", ["free", "periodic"])
def test_lam_of_any_size(boundary):
    """The identity, and the mean; n is no multiple of a segment's rows."""
    for n in (2, 33, 70):
        grad = torch.randn(n, 5) + 1
        for lam, exact in ((1e-290, grad), (1e290, grad.double().mean(0).expand(n, 5))):
            copy = grad.clone()
            Plan([(copy, 0, 1)], Sobolev(lam, boundary), SMALL).run([copy])
            assert error(copy, exact.double().numpy()) < 1e-6


def test_alternating_columns_of_zero_mean():
    """The result is 3e-6 of the gradient, and still right to float32."""
    grad = torch.tensor([1.0, -1.0]).repeat(40)[:, None].expand(80, 3).clone()
    for metric in (Sobolev(1e3), Sobolev(1e3, "periodic")):
        exact, copy = directed(grad.double().numpy(), metric), grad.clone()
        Plan([(copy, 0, 1)], metric, SMALL).run([copy])
        assert error(copy, exact) < 1e-6


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_one_launch_for_all_tensors_of_a_dtype(metric, launches):
    """Unlike shapes, axes, groups and strides; a second step writes no table."""
    torch.manual_seed(0)
    shapes = [
        ((8, 3, 3, 3), 0, 1),
        ((6, 10, 2, 2), 1, 2),
        ((4, 5), -2, 1),
        ((16, 1, 3, 3), 0, 16),
        ((1, 7), 0, 1),
        ((40, 8), 0, 1),
        ((9, 4), 0, 1),
    ]
    grads = [torch.randn(shape, dtype=torch.float32) for shape, _, _ in shapes]
    grads[0] = grads[0].to(memory_format=torch.channels_last)
    grads[-1] = grads[-1].bfloat16()
    jobs = [(grad, dim, groups) for grad, (_, dim, groups) in zip(grads, shapes, strict=True)]
    plan = Plan(jobs, metric, SMALL)
    for _ in range(2):
        exact = [directed(g.double().numpy(), metric, d, n) for g, d, n in jobs]
        launches.clear()
        plan.run(grads)
        assert launches == ["directed"] * 2
        for grad, true in zip(grads, exact, strict=True):
            unit = torch.finfo(grad.dtype).eps
            np.testing.assert_allclose(grad.double(), true, rtol=2 * unit, atol=2 * unit)


def test_a_plan_takes_gradients_in_new_memory_and_another_lam():
    """Also memory that is aligned in another way."""
    grad = torch.randn(12, 8)
    plan = Plan([(grad, 0, 1)], Sobolev(0.1), SMALL)
    for metric in (Sobolev(0.1), Sobolev(7.0)):
        plan.metric = metric
        for moved in (torch.randn(12, 8), torch.randn(97)[1:].view(12, 8)):
            exact = directed(moved.double().numpy(), metric)
            plan.run([moved])
            assert error(moved, exact) < 1e-6
    with pytest.raises(ValueError, match="prepare a new plan"):
        plan.metric = Sobolev(0.1, "periodic")


def test_addresses_that_return_are_not_uploaded_again(monkeypatch):
    """An allocator returns the same blocks after a step or a few; the oldest are forgotten."""
    monkeypatch.setattr(addresses, "REMEMBERED", 3)
    uploads = []
    for name in ("upload", "upload_integers"):
        upload = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *args, upload=upload: uploads.append(0) or upload(*args))
    memories = [torch.randn(12, 8) for _ in range(4)]
    prepared = prepare(memories[:1], "sobolev:lam=1", backend="triton")

    def run(i):
        before = len(uploads)
        exact = directed(memories[i].double().numpy(), Sobolev(1.0))
        prepared.run([memories[i]])
        assert error(memories[i], exact) < 1e-6
        return len(uploads) - before

    assert run(0) > 1  # the tables of the plan, too
    assert [run(i) for i in (1, 2, 0, 1, 2, 3, 0, 3, 2)] == [1, 1, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="overlap"):
        prepare([memories[0], memories[1]], "sobolev:lam=1", backend="triton").run([memories[0]] * 2)


@pytest.mark.parametrize("backend", ["auto", "triton", "eager"])
def test_prepared_gradients(backend):
    """Forms are compared by `matches`; memory and lam may change."""
    shapes, dims = [(6, 4, 3, 3), (5, 7)], [0, 1]
    prepared = prepare([torch.empty(shape) for shape in shapes], "sobolev:lam=1", dims, backend=backend)
    for lam in (1.0, 0.1):
        grads = [torch.randn(shape) for shape in shapes]
        exact = [directed(g.numpy(), Sobolev(lam), d) for g, d in zip(grads, dims, strict=True)]
        prepared.metric = Sobolev(lam)
        assert prepared.matches(grads)
        prepared.run(grads)
        assert all(error(g, true) < 1e-6 for g, true in zip(grads, exact, strict=True))
    assert not prepared.matches([grads[0].transpose(1, 2), grads[1]])
    with pytest.raises(ValueError, match="prepare again"):
        prepared.metric = ReweightedL2(1)


def test_a_graph_needs_one_step_before_it(capturing):
    grad = torch.randn(11, 5)
    before = grad.clone()
    capturing()
    with pytest.raises(RuntimeError, match="run one step before the capture"):
        channel_directed_([grad], METRICS[1], backend="triton")
    assert torch.equal(grad, before)


def test_a_graph_captures_gradients_in_new_memory(capturing, launches, monkeypatch):
    """As after ``zero_grad(set_to_none=True)``: the addresses are written by a kernel, inside the graph."""
    monkeypatch.setattr(graphs, "_kept", set())
    metric = Sobolev(0.25)
    kept = torch.randn(12, 5)  # so that the next gradient lies elsewhere
    channel_directed_([kept], metric, backend="triton")
    grad = torch.randn(12, 5)
    exact = directed(grad.numpy(), metric)
    capturing()
    launches.clear()
    channel_directed_([grad], metric, backend="triton")
    assert launches == ["write16", "directed"]
    np.testing.assert_allclose(grad, exact, rtol=1e-6, atol=1e-6)


def test_what_a_graph_launches_was_launched_before(capturing, launches, monkeypatch):
    """Compiled code cannot be loaded during a capture; numbers beyond 32 bits are another kernel."""
    monkeypatch.setattr(graphs, "_kept", set())
    monkeypatch.setattr(launch, "_prepared_for_captures", set())
    written, write = [], launch.write_in_graph
    monkeypatch.setattr(
        launch, "write_in_graph", lambda pointers, device: written.append(pointers) or write(pointers, device)
    )
    kept = torch.randn(14, 5)
    channel_directed_([kept], METRICS[1], backend="triton")
    before, early = set(launches), list(written)
    assert [(len(each), each[0].bit_length()) for each in early] == [(1, 41)]
    launches.clear()
    grad = torch.randn(14, 5)
    capturing()
    channel_directed_([grad], METRICS[1], backend="triton")
    assert set(launches) == before == {"write16", "directed"}
    assert written == [*early, [grad.data_ptr()]]


def test_replays_follow_lam_after_steps_on_another_stream(capturing, arguments, monkeypatch):
    """There the arrays are uploaded anew, and the graph still reads the old ones."""
    streams = iter((1, 2))
    stream = [next(streams)]
    monkeypatch.setattr(launch._Batch, "_current_stream", lambda self: stream[0])
    grad = torch.randn(15, 5)
    plan = launch.Plan([(grad, 0, 1)], Sobolev(0.25))
    plan.run([grad])
    with monkeypatch.context() as inside:
        inside.setattr(launch, "capturing_on", lambda device: True)
        plan.run([grad])
    captured = arguments[-1]
    stream[0] = next(streams)
    plan.run([grad])
    present = arguments[-1]
    assert all(a is not b for a, b in zip(captured, present, strict=True))
    plan.metric = Sobolev(0.5)
    for old, new in zip(captured[1:4], present[1:4], strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)
    expected = launch.Plan([(grad, 0, 1)], Sobolev(0.5))
    expected.run([grad])
    torch.testing.assert_close(captured[3], arguments[-1][3], rtol=0, atol=0)
    capturing()
    with pytest.raises(RuntimeError, match="lam cannot change within it"):
        plan.metric = Sobolev(0.25)
    assert plan.metric == Sobolev(0.5)


def test_lam_of_a_plan_that_began_in_inference_mode_can_change(monkeypatch):
    monkeypatch.setattr(launch, "upload", lambda array, device: torch.as_tensor(array).clone())  # as on a GPU
    grad = torch.randn(6, 4)
    plan = Plan([(grad, 0, 1)], Sobolev(0.25))
    with torch.inference_mode():
        plan.run([grad])
    plan.metric = Sobolev(0.5)
    exact = directed(grad.numpy(), Sobolev(0.5))
    plan.run([grad])
    assert error(grad, exact) < 1e-6


def test_every_stream_has_arrays_of_its_own(arguments, monkeypatch):
    """They are written on the stream that reads them, once, and again for another lam."""
    stream = [0]
    monkeypatch.setattr(launch._Batch, "_current_stream", lambda self: stream[0])
    grad = torch.randn(15, 5)
    plan = Plan([(grad, 0, 1)], Sobolev(0.25))
    exact = Plan([(grad, 0, 1)], Sobolev(0.5))

    def on(number, plan=plan):
        stream[0] = number
        plan.run([grad])
        return arguments[-1]

    first, second = on(1), on(2)
    assert all(a is not b for a, b in zip(first, second, strict=True))
    assert on(1)[1:] == first[1:]
    assert on(2)[0] is second[0]  # of addresses that are there
    plan.metric = Sobolev(0.5)
    assert torch.equal(second[3], on(9, exact)[3])  # at once on the present stream
    assert not torch.equal(first[3], second[3])  # its kernels may be reading
    on(1)
    assert torch.equal(first[3], second[3])
    for number in range(3, 3 + launch.STREAMS):
        on(number)
    assert on(1)[1] is not first[1]


def test_a_graph_has_its_own_scratch(arguments):
    """A replay may run beside a step on another stream; the rest is only read."""
    grad = torch.randn(1500, 5)
    plan = Plan([(grad, 0, 1)], Sobolev(0.25), SMALL)
    plan.run([grad])
    with pytest.MonkeyPatch.context() as inside:
        inside.setattr(launch, "capturing_on", lambda device: True)
        plan.run([grad])
        plan.run([grad])
    eager, first, second = (args[-1] for args in arguments)
    assert eager.shape == first.shape == second.shape
    assert len({eager.data_ptr(), first.data_ptr(), second.data_ptr()}) == 3
    assert arguments[0][:-1] == arguments[1][:-1]


def test_what_a_graph_reads_stays(capturing, monkeypatch):
    """The least used plans leave the device, but a replay may come at any time."""
    monkeypatch.setattr(graphs, "_kept", set())
    with monkeypatch.context() as inside:
        channel_directed_([torch.randn(13, 5)], METRICS[1], backend="triton")
        inside.setattr(launch, "capturing_on", lambda device: True)
        channel_directed_([torch.randn(13, 5)], METRICS[1], backend="triton")
    assert len(graphs._kept) == 1
    monkeypatch.setattr(launch, "_PLANS", 3)
    for n in (3, 4, 5):
        channel_directed_([torch.randn(n, 5)], METRICS[1], backend="triton")
    assert len(launch._plans) == 3
    assert len(graphs._kept) == 1


@pytest.mark.parametrize("tile", {*SMALL.values(), *(t for of in tables.TILES.values() for t in of.values())})
def test_groups_of_columns_fill_a_tile(tile):
    """As many as its segments hold; a column that needs them all is alone, or takes several tiles."""
    for n in range(2, 2 * tile.rows * tile.segments + 2):
        needed, side = -(-n // tile.rows), tile.side(n)
        assert side >= 1
        if tile.tiles(n) == 1:
            assert side * needed <= tile.segments < (side + 1) * needed
        else:
            assert needed > tile.segments
            assert side == 1
        assert tile.width(n) == side * tile.columns
        assert 2 * tile.width(n, aligned=False) == tile.width(n)


def test_long_programs_begin_first_then_other_accesses_and_each_column_is_in_one():
    """At the end of a launch nothing else is under way: what takes longest must not begin there.

    Nor what waits for instructions of its own.
    """
    shapes = [(64, 4096), (8, 64), (30, 512), (1000, 64), (40, 4), (70, 33), (12, 66)]
    strides = [(shape[1], 1) for shape in shapes[:-1]] + [(2 * 66, 2)]
    tensors = [
        (columns_of(shape, stride, 0, 1), shape != (30, 512))
        for shape, stride in zip(shapes, strides, strict=True)
    ]
    tile = Tile(4, 8, 4, 1)
    records = tables.records(tensors, sobolev=True, tile=tile)
    order = list(dict.fromkeys(records.programs[:, 0].tolist()))
    accesses = [dict(records.programs[:, ::2].tolist())[index] for index in range(len(shapes))]
    assert accesses == [0, 0, 1, 0, 0, 1, 2]
    assert sorted(order) == list(range(len(shapes)))
    keys = [(tile.tiles(shapes[index][0]), accesses[index]) for index in order]
    assert keys == sorted(keys, reverse=True)
    assert keys[0][0] > keys[-1][0] == 1
    assert records.used == 0b111
    in_scratch: list[int] = []
    for index, (n, number) in enumerate(shapes):
        blocks = records.programs[records.programs[:, 0] == index, 1].tolist()
        columns = tile.columns // 2 if accesses[index] else tile.columns
        assert blocks == list(range(-(-number // (tile.side(n) * columns))))
        if tile.tiles(n) > 1:
            each = tile.tiles(n) * columns
            start = int(records.tensors[index, 6])
            in_scratch += range(start, start + each * len(blocks))
    assert sorted(in_scratch) == list(range(records.scratch))


def test_refusals(monkeypatch):
    assert launch.refusal(torch.randn(3, 4), 0, 1) is None
    assert "float8" in launch.refusal(torch.zeros(3, 4, dtype=torch.float8_e5m2), 0, 1)
    scattered = torch.zeros(2, 4, 4, 4, 4, 4)[:, ::2, ::2, ::2, ::2, ::2]
    assert "5 axes" in launch.refusal(scattered, 0, 1)
    monkeypatch.setattr(launch, "MOST_CHANNELS", 8)
    assert launch.refusal(torch.randn(8, 4), 0, 1) is None
    assert "it has 9 channels; the Triton kernels support 8" in launch.refusal(torch.randn(9, 4), 0, 1)
    with pytest.raises(ValueError, match=r"backend='triton' cannot take this gradient.*backend='auto'"):
        channel_directed_([scattered], METRICS[0], backend="triton")
    assert select_backend(torch.randn(3, 4), METRICS[0])[0] != "triton"


@given(st.data())
def test_columns_are_the_memory_of_the_tensor(data):
    """Channels and axes lead to each element once."""
    groups, shape = data.draw(st.integers(1, 3)), data.draw(st.lists(st.integers(1, 4), max_size=3))
    dim = data.draw(st.integers(0, len(shape)))
    shape.insert(dim, groups * data.draw(st.integers(2, 4)))
    order = data.draw(st.permutations(range(len(shape))))
    spread = torch.empty([shape[axis] * 2 for axis in order])[
        tuple(slice(None, None, data.draw(st.integers(1, 2))) for _ in order)
    ]
    tensor = spread[tuple(slice(shape[axis]) for axis in order)].permute(*np.argsort(order).tolist())
    columns = columns_of(tensor.shape, tensor.stride(), dim, groups)
    offsets = np.zeros(1, int)
    for size, stride in ((columns.n, columns.step), *columns.axes):
        offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
    everywhere = np.zeros(1, int)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        everywhere = (everywhere[:, None] + np.arange(size) * stride).ravel()
    assert np.array_equal(np.sort(offsets), np.sort(everywhere))


@given(st.integers(1, 40), st.floats(-12, 9))
def test_the_weights_solve_the_system(n, exponent):
    """Elimination against its recurrence; Green's function and wrap against the dense inverse."""
    lam = 10.0**exponent
    weights, c = sobolev_weights.sobolev(n, lam), lam * n**2
    s = np.ones(n)
    for m in range(1, n):
        s[m] = 1 + s[m - 1] / (1 + s[m - 1] / c)
    np.testing.assert_allclose(weights.ratio[:-1], 1 / (1 + s[:-1] / c), rtol=1e-14)
    np.testing.assert_allclose(weights.inverse_pivot, [*(1 / (c + s[:-1])), 1 / s[-1]], rtol=1e-13)
    inverse = np.diag(weights.green)
    for m in range(n - 1):
        inverse[: m + 1, m + 1] = weights.ratio[n - 2 - m] * inverse[: m + 1, m]
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    np.testing.assert_allclose(inverse.sum(0), 1, rtol=1e-12)  # T keeps constants
    if n > 1 and exponent < 3:
        expected = directed(np.eye(n), Sobolev(lam, "periodic"))
        np.testing.assert_allclose(inverse - np.outer(weights.wrap, weights.wrap), expected, atol=1e-9)


@given(st.integers(1, 40), st.floats(-12, 3), st.sampled_from(["free", "periodic"]))
def test_images_solve_the_system(n, exponent, boundary):
    """Against the dense inverse; f and b of unit gradients are powers of the ratio."""
    solve = sobolev_weights.images(n, 10.0**exponent, boundary == "periodic")
    m = np.arange(n)
    f = np.tril(np.exp(-solve.theta * np.abs(m[:, None] - m)))
    b = f.T.copy()
    b_of_first, f_of_last = b[0].copy(), f[-1].copy()
    f += np.exp(-solve.theta * (m + 1))[:, None] * (solve.near * b_of_first + solve.far * f_of_last)
    b += np.exp(-solve.theta * (n - m))[:, None] * (solve.near * f_of_last + solve.far * b_of_first)
    inverse = solve.strength * (f + b - np.eye(n))
    np.testing.assert_allclose(inverse, directed(np.eye(n), Sobolev(10.0**exponent, boundary)), atol=1e-9)
    np.testing.assert_allclose(inverse.sum(0), 1, rtol=1e-12)
    q = 1 - solve.complement
    np.testing.assert_allclose(inverse[:-1], solve.inverse_pivot * f[:-1] + q * inverse[1:], atol=1e-9)


MOST_SPILLED = 32  # bytes of a thread, as docs/cost.md states
OFFLINE = Path(__file__).parents[2] / "benchmarks" / "offline.py"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_the_kernels_compile_without_a_gpu(tmp_path):
    """Lanes lie along columns, a segment's rows in one thread; accesses are wide; hardly a spill."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    architectures = ["80", "90", "120", "gfx942"]
    command = [sys.executable, OFFLINE, "--arch", *architectures, "--dtype", "float32"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr  # AMD's assembler reports a wrong constraint, and the compiler succeeds
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["arch"] for row in rows] == [arch for arch in architectures for _ in range(3)]
    for row in rows:
        which = row["arch"], row["metric"]
        # Triton 3.4 to 3.6 need them: their lanes would lie along the rows.
        assert row["claims"] >= 1, which
        assert row["layouts"], which
        assert row["layouts_of_stores"], which
        tile = tables.TILES[type(parse_metric(row["metric"]))][4]
        assert tuple(row["tile"]) == tile[:3], which
        at_once, width = tile.vector, 4 * tile.vector
        rocm = row["arch"].startswith("gfx")
        for elements, lanes in row["layouts"] + row["layouts_of_stores"]:
            assert lanes[0] == 1, which
            assert elements[2] == at_once, which
            assert lanes[2] == min(tile.columns // at_once, 64 if rocm else 32), which
        if rocm:
            assert row["spilled_registers"] == 0, which
        else:
            # Every load, of the first reading and of the second.
            assert row[f"loads_of_{width}_bytes"] >= 2 * tile.rows, which
            assert row[f"stores_of_{width}_bytes"] == tile.rows, which
            assert row["registers"] <= 128, which
            assert row["stack_bytes"] <= MOST_SPILLED, which
            assert row["spill_store_bytes"] <= MOST_SPILLED, which


def test_the_record_of_the_compilers():
    """Of six Tritons: no kernel fails, compiles for long, or spills more than docs/cost.md says."""
    rows = json.loads((OFFLINE.parent / "results" / "offline.json").read_text())
    assert {row["triton"] for row in rows} == {"3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0"}
    nvidia, amd = {"75", "80", "86", "89", "90", "120"}, {"gfx90a", "gfx942", "gfx1100", "gfx1201"}
    assert {row["arch"] for row in rows} == nvidia | amd
    assert {(row["triton"], row["arch"]) for row in rows} >= {
        (row["triton"], arch) for row in rows for arch in nvidia
    }
    assert {row["access"] for row in rows} - {"resnet50"} == {"aligned", "contiguous", "strided"}
    for row in rows:
        # All others were compiled on a slower CPU, and part of 3.5's.
        assert row["compile_cpu_s"] <= (3 if row["triton"] in ("3.4.0", "3.6.0", "3.9.0") else 6)
        assert all(lanes[0] == 1 for _, lanes in row["layouts"] + row["layouts_of_stores"])
        if row["arch"] in amd:
            assert row["spilled_registers"] == 0
        else:
            assert row["registers"] <= 128
            assert row["stack_bytes"] <= MOST_SPILLED, row

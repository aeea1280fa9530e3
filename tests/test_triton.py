"""The GPU backend, interpreted: what the contract suite does not see."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed_, select_backend
from cdgrad.ops import eager, sobolev_weights
from cdgrad.ops.memory_layout import columns_of
from cdgrad.reference import directed

pytest.importorskip("triton")
from cdgrad.ops.triton import launch as gpu

METRICS = [ReweightedL2(3), *(f(0.1, b) for f in (Sobolev, MeanSobolev) for b in ("free", "periodic"))]
COMPILED = {ReweightedL2.family: gpu.Tile(128, 32, 4), Sobolev.family: gpu.Tile(32, 32, 1)}
COMPILED[MeanSobolev.family] = COMPILED[Sobolev.family]


@pytest.fixture
def capturing(monkeypatch):
    """Call it, and the current stream is being captured."""
    return lambda: monkeypatch.setattr(gpu, "_capturing", lambda device: True)


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched, by name, in order."""
    names = []
    kernel = gpu._kernel
    monkeypatch.setattr(gpu, "_kernel", lambda name: names.append(name) or kernel(name))
    return names


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_the_tiles_of_the_gpu(metric, monkeypatch):
    """Several chunks, the last of them short, and more columns than a program holds."""
    for name, tile in COMPILED.items():
        monkeypatch.setitem(gpu.TILES, name, tile)
    gpu._batches.cache_clear()
    grad = torch.randn(70, 37, dtype=torch.float64)
    expected = directed(grad.numpy(), metric)
    channel_directed_([grad], metric, backend="triton")
    gpu._batches.cache_clear()
    np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_one_launch_for_all_tensors_of_a_dtype(metric, launches):
    """Unlike shapes, axes, groups and strides; a second step writes no table."""
    shapes = [
        ((8, 3, 3, 3), 0, 1),
        ((6, 10, 2, 2), 1, 2),
        ((4, 5), -2, 1),
        ((16, 1, 3, 3), 0, 16),
        ((1, 7), 0, 1),
    ]
    grads = [torch.randn(shape, dtype=torch.float32) for shape, _, _ in shapes]
    grads[0] = grads[0].to(memory_format=torch.channels_last)
    grads += [torch.randn(9, 4).bfloat16()]
    dims, groups = [*(dim for _, dim, _ in shapes), 0], [*(count for _, _, count in shapes), 1]
    for written in (2, 0):
        expected = [
            directed(g.double().numpy(), metric, d, n) for g, d, n in zip(grads, dims, groups, strict=True)
        ]
        launches.clear()
        channel_directed_(grads, metric, dims, groups, backend="triton")
        assert sorted(launches) == sorted([metric.family.replace("-", "_")] * 2 + ["write16"] * written)
        for grad, true in zip(grads, expected, strict=True):
            unit = torch.finfo(grad.dtype).eps
            np.testing.assert_allclose(grad.double(), true, rtol=unit, atol=unit)


def test_more_tensors_than_one_launch_writes_addresses():
    grads = [torch.randn(4, 2) for _ in range(37)]
    expected = [directed(g.numpy(), METRICS[1]) for g in grads]
    channel_directed_(grads, METRICS[1], backend="triton")
    np.testing.assert_allclose(torch.stack(grads), np.stack(expected), rtol=1e-6, atol=1e-6)


def test_a_graph_needs_one_step_before_it(capturing):
    grad = torch.randn(11, 5)
    before = grad.clone()
    capturing()
    with pytest.raises(RuntimeError, match="run one step before the capture"):
        channel_directed_([grad], METRICS[1], backend="triton")
    assert torch.equal(grad, before)


def test_a_graph_captures_gradients_in_new_memory(capturing, launches):
    """As after ``zero_grad(set_to_none=True)``: the addresses are written by a kernel, inside the graph."""
    metric = Sobolev(0.25)
    channel_directed_([torch.randn(12, 5)], metric, backend="triton")
    grad = torch.randn(12, 5)
    expected = directed(grad.numpy(), metric)
    capturing()
    launches.clear()
    channel_directed_([grad], metric, backend="triton")
    assert launches == ["write16", "sobolev"]
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-6)


def test_what_a_graph_reads_stays(capturing, monkeypatch):
    """The least used tables leave the device, but a replay may come at any time."""
    monkeypatch.setattr(gpu, "_captured", set())
    with monkeypatch.context() as inside:
        channel_directed_([torch.randn(13, 5)], METRICS[1], backend="triton")
        inside.setattr(gpu, "_capturing", lambda device: True)
        channel_directed_([torch.randn(13, 5)], METRICS[1], backend="triton")
    assert len(gpu._captured) == 2
    monkeypatch.setattr(gpu, "_RESIDENTS", 3)
    for n in (3, 4, 5):
        channel_directed_([torch.randn(n, 5)], METRICS[1], backend="triton")
    assert len(gpu._residents) == 3
    assert len(gpu._captured) == 2


def test_refusals():
    assert gpu.refusal(torch.randn(3, 4), 0, 1) is None
    assert "float8" in gpu.refusal(torch.zeros(3, 4, dtype=torch.float8_e5m2), 0, 1)
    scattered = torch.zeros(2, 4, 4, 4, 4, 4)[:, ::2, ::2, ::2, ::2, ::2]
    assert "5 axes" in gpu.refusal(scattered, 0, 1)
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


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0, 1e3])
def test_the_arithmetic_at_16384_channels(lam):
    """The sweeps of the H1 kernel in numpy: float32 in, float64 between, float32 out."""
    n = 16384
    g = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32).astype(np.float64)
    weights = sobolev_weights.sobolev(n, lam)
    f, b = g.copy(), g.copy()
    for m in range(1, n):
        f[m] += weights.ratio[m - 1] * f[m - 1]
        b[n - 1 - m] += weights.ratio[m - 1] * b[n - m]
    free = weights.green[:, None] * (f + (b - g))
    for boundary, x in (("free", free), ("periodic", free - np.outer(weights.wrap, weights.wrap @ g))):
        expected = eager.directed(torch.from_numpy(g)[None], Sobolev(lam, boundary))[0].numpy()
        assert np.linalg.norm(x.astype(np.float32) - expected) <= 1e-7 * np.linalg.norm(expected)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from cdgrad.ops.triton import launch as gpu
from cdgrad.ops.triton import kernels
pointers = dict(addresses="*i64", table="*i64", weights="*fp64", scratch="*fp64")
for family, tile in gpu.TILES.items():
    kernel = getattr(kernels, family.replace("-", "_"))
    for dtype in (kernels.tl.bfloat16, kernels.tl.float64):
        fixed = dict(DTYPE=dtype, ROWS=tile.rows, COLUMNS=tile.columns, PERIODIC=True)
        source = ASTSource(
            kernel,
            pointers | dict.fromkeys(fixed, "constexpr"),
            constexprs={(kernel.arg_names.index(name),): value for name, value in fixed.items()},
        )
        options = dict(num_warps=tile.warps, enable_fp_fusion=True)
        assert "cubin" in compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm
        print(family, dtype)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_the_kernels_compile_without_a_gpu(tmp_path):
    """To machine code of sm_80: the interpreter accepts much that the compiler does not."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6

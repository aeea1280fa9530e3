"""What the CPU kernels promise beyond the contract: threads, forks, memory, bits, and a way back to eager."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch
from every_metric import every_metric

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed_, select_backend
from cdgrad.ops import eager, sobolev_weights
from cdgrad.ops.cpu import kernels
from cdgrad.ops.cpu import launch as cpu
from cdgrad.ops.cpu import threads as thread_team


def weights(dtype=torch.float32):
    """Gradients of several blocks each, of one, of many small columns, and of none."""
    torch.manual_seed(0)
    shapes = [(300, 5003), (64, 27), (16, 700, 3, 3), (7, 1), (1, 9), (0, 3)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def expected(grads, metric, dims, groups):
    return [
        eager.directed(g.double().movedim(d, 0).unflatten(0, (k, -1)), metric).flatten(0, 1).movedim(0, d)
        if g.numel()
        else g.double()
        for g, d, k in zip(grads, dims, groups, strict=True)
    ]


@every_metric
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("dims", "groups"), [((0,) * 6, (1,) * 6), ((1, 0, 1, 0, 1, 1), (1, 4, 7, 7, 3, 1))])
def test_blocks_and_threads_cover_every_element_once(metric, count, dims, groups, threads, monkeypatch):
    threads(count)
    monkeypatch.setattr(cpu, "LEAST_BYTES", 4096)  # blocks small enough that each axis has several
    cpu.make_plan.cache_clear()
    grads = weights()
    want = expected(grads, metric, dims, groups)
    monkeypatch.setattr(eager, "directed", None)  # the kernels run, not eager
    channel_directed_(grads, metric, dims, groups)
    for got, reference in zip(grads, want, strict=True):
        assert (got - reference).norm() <= 1e-6 * reference.norm()


def test_the_case_above_has_several_blocks_along_both_axes(threads, monkeypatch):
    threads(5)
    monkeypatch.setattr(cpu, "LEAST_BYTES", 4096)
    cpu.make_plan.cache_clear()
    axes = zip(weights(), (1, 0, 1, 0, 1, 1), (1, 4, 7, 7, 3, 1), strict=True)
    table = cpu.make_plan(tuple((g.shape, g.stride(), *axis) for g, *axis in axes), 4, 5).table
    assert (table[:, kernels.ACROSS] > 1).any()
    assert (table[:, kernels.OUTER] > table[:, kernels.OUTER_BLOCK]).any()


@every_metric
def test_the_same_bits_whatever_the_number_of_threads(metric, threads):
    results = []
    for count in (1, 3, 3):
        threads(count)
        grads = weights()
        channel_directed_(grads, metric)
        results.append(grads)
    for single, first, second in zip(*results, strict=True):
        assert torch.equal(single, first)
        assert torch.equal(first, second)


def test_the_thread_count_of_torch_is_obeyed(threads, monkeypatch):
    counts = []
    fork_join = thread_team.fork_join

    def counted(worker, job, number, held):
        counts.append(number)
        fork_join(worker, job, number, held)

    monkeypatch.setattr(thread_team, "fork_join", counted)
    for count in (1, 2, 4):
        threads(count)
        channel_directed_(weights(), "reweighted:lam=3")
    channel_directed_([torch.randn(64, 27)], "reweighted:lam=3")
    assert counts == [1, 2, 4, 1], "a small gradient is not worth waking a thread"


@pytest.mark.parametrize("own_pool", [False, True])
def test_as_many_threads_work_as_were_asked_for(own_pool, threads, monkeypatch):
    """Each takes of its own range; a late thread of our pool may be left out, one of torch's never is."""
    if own_pool:
        monkeypatch.setattr(thread_team, "openmp", lambda: None)
    elif thread_team.openmp() is None:
        pytest.skip("this torch does not use OpenMP's GNU interface")
    threads(3)
    begun = []

    def seen(worker, job, number, held):
        fork_join(worker, job, number, held)
        begun.append((number, np.count_nonzero(held[-2][:number] % kernels.OTHERS)))

    fork_join = thread_team.fork_join
    monkeypatch.setattr(thread_team, "fork_join", seen)
    grads = weights()
    channel_directed_(grads, "reweighted:lam=3")
    ((number, present),) = begun
    assert number == 3
    assert 1 <= present <= 3 if own_pool else present == 3
    again = weights()
    monkeypatch.setattr(thread_team, "openmp", lambda: None)
    channel_directed_(again, "reweighted:lam=3")
    assert all(map(torch.equal, grads, again))


def test_several_python_threads_at_once(threads):
    threads(2)
    metric = Sobolev(0.01)
    want = weights()
    channel_directed_(want, metric)

    def repeat(_):
        for _ in range(5):
            grads = [g.clone() for g in source]
            channel_directed_(grads, metric)
            assert all(map(torch.equal, grads, want))
        return True

    source = weights()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeat, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_makes_its_own_threads():
    script = """
import os, torch
from cdgrad import channel_directed_
torch.set_num_threads(2)
def run():
    torch.manual_seed(0)
    grad = torch.rand(300, 5003)
    channel_directed_([grad], "sobolev:lam=0.1")
    return grad
want = run()
child = os.fork()
if not child:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    torch.manual_seed(0)
    grad = torch.rand(300, 5003)
    torch.set_num_threads(2)
    channel_directed_([grad], "sobolev:lam=0.1")
    os._exit(0 if (grad.numpy() == want.numpy()).all() else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=120, check=False)
    assert done.returncode == 0


def test_no_memory_of_the_size_of_the_gradient():
    script = """
import resource, torch
from cdgrad import channel_directed_
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for metric in ("reweighted:lam=3", "sobolev:lam=0.1", "mean-sobolev:lam=0.1"):
    channel_directed_([torch.ones(4, 3)], metric)
grad = torch.ones(512, 65536)
before = peak()
for metric in ("reweighted:lam=3", "sobolev:lam=0.1", "mean-sobolev:lam=0.1"):
    channel_directed_([grad], metric)
raise SystemExit(f"{(peak() - before) / grad.nbytes:.3f}" if peak() - before > 0.05 * grad.nbytes else 0)
"""
    pytest.importorskip("resource", reason="Windows has no resource module")
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=600, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@every_metric
@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e3])
def test_accuracy_at_many_channels(metric, lam):
    torch.manual_seed(0)
    noise = torch.randn(16384, 2, dtype=torch.float64)
    metric = type(metric)(lam, *([metric.boundary] if hasattr(metric, "boundary") else []))
    for wide in (noise, noise - noise.mean(0), noise + 100):
        grad = wide.float()
        want = eager.directed(grad.double()[None], metric)[0]
        channel_directed_([grad], metric, backend="cpu")
        assert (grad - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_and_written_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    same = every.repeat(2, 1)
    channel_directed_([same], "reweighted:lam=4", backend="cpu")
    finite = every.isfinite()
    assert torch.equal(same[:, finite], every[finite].repeat(2, 1))
    assert not same[:, ~finite].isfinite().any()
    # lam = 4 is exact in float64, so what is left is one rounding.
    mixed = torch.stack([every[finite], every[finite].roll(12345)])
    wide = mixed.double()
    want = (wide.mean(0) + (wide - wide.mean(0)) / 4).float().to(dtype)
    channel_directed_([mixed], "reweighted:lam=4", backend="cpu")
    assert torch.equal(mixed, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deviations_beyond_the_largest_float_stay_finite(dtype):
    """A deviation of 4.5e38 has no float32; divided by lam it has one, and so has the result."""
    grad = torch.tensor([3e38, -3e38, -3e38, -3e38]).repeat(20, 1).T.contiguous().to(dtype)
    for metric in (ReweightedL2(3), Sobolev(1.0), MeanSobolev(1.0), Sobolev(1e308), ReweightedL2(1e308)):
        out, want = grad.clone(), grad.double()
        channel_directed_([out], metric, backend="cpu")
        channel_directed_([want], metric, backend="cpu")
        torch.testing.assert_close(out.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e32)


@pytest.mark.parametrize("boundary", ["free", "periodic"])
@pytest.mark.parametrize("n", [2, 13, 300, 5000])
def test_finite_results_of_float64_near_the_largest_float_stay_finite(n, boundary):
    """A gradient times 2^1023 gives the result times 2^1023, because the operator is linear."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(n, 37, generator=generator, dtype=torch.float64) * 1.8 - 0.9
    small[:, 0] = 0.9
    small[:, 1] = torch.tensor([0.9, 0.9, -0.9]).repeat(n)[:n]
    small[:, 2] = torch.linspace(-0.9, 0.9, n)
    for family, lams in ((Sobolev, (1e-9, 0.01, 0.5, 1e6, 1e308)), (MeanSobolev, (0.5, 10.0, 1e6, 1e100))):
        for lam in lams:
            metric = family(lam, boundary)
            out, want = small * 2.0**1023, small.clone()
            channel_directed_([out], metric, backend="cpu")
            channel_directed_([want], metric, backend="cpu")
            assert torch.equal(out / 2.0**1023, want), metric


def test_constant_columns_near_the_largest_float_stay_as_they_are_for_a_small_lam():
    for boundary in ("free", "periodic"):
        for lam in (1e-3, 1e-6, 1e-9):
            out = torch.full((64, 20), 1.7e308, dtype=torch.float64)
            channel_directed_([out], MeanSobolev(lam, boundary), backend="cpu")
            torch.testing.assert_close(out, torch.full_like(out, 1.7e308), rtol=1e-15 / lam, atol=0)


def test_the_smallest_lam_leaves_a_constant_column_alone():
    for metric in (ReweightedL2(1e-308), Sobolev(1e-308)):
        grad = torch.full((4, 20), 1.5)
        channel_directed_([grad], metric, backend="cpu")
        assert torch.equal(grad, torch.full((4, 20), 1.5))


def test_large_gradients_do_not_overflow_between_the_sweeps():
    grad = torch.full((1024, 3), 1e36)
    channel_directed_([grad], "sobolev:lam=1000", backend="cpu")
    torch.testing.assert_close(grad, torch.full((1024, 3), 1e36))


def test_autograd_sees_the_write():
    grad = torch.randn(4, 3)
    version = grad._version
    channel_directed_([grad], "reweighted:lam=3", backend="cpu")
    assert grad._version > version
    with torch.inference_mode():
        channel_directed_([torch.randn(4, 3)], "reweighted:lam=3", backend="cpu")


class Wrapped(torch.Tensor):
    """Memory of its own, for all that the kernels know."""


@pytest.mark.parametrize(
    ("grad", "reason"),
    [
        (torch.randn(4, 3, device="meta"), "no fused kernel"),
        (torch.randn(4, 3).as_subclass(Wrapped), "a Wrapped may not be plain memory"),
        (torch._neg_view(torch.randn(4, 3)), "lazily negated"),
        (torch.randn(20).as_strided((3, 2), (2, 3)), "overlap"),
        (torch.randn(9, 8, 8, 8, 8)[:, ::2, ::2, ::2, ::2], "more than three axes"),
        (torch.randn(4, 3).to(torch.float8_e4m3fn), "do not support torch.float8_e4m3fn"),
    ],
)
def test_what_the_kernels_cannot_take_is_left_to_eager(grad, reason):
    name, said = select_backend(grad, "sobolev:lam=1")
    assert name == "eager"
    assert reason in said
    with pytest.raises(ValueError, match="backend='cpu' cannot take this gradient"):
        channel_directed_([grad], "sobolev:lam=1", backend="cpu")


def test_without_numba_eager_runs_with_a_warning_and_a_reason(monkeypatch):
    def no_numba(name):
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(cpu, "import_module", no_numba)
    cpu.unavailable.cache_clear()
    cpu.compiled_worker.cache_clear()
    try:
        grad = torch.randn(4, 3)
        with pytest.warns(UserWarning, match="numba cannot compile .* eager backend"):
            assert select_backend(grad, "sobolev:lam=1") == (
                "eager",
                "numba cannot compile the CPU kernels (ImportError: No module named 'numba')",
            )
        want = eager.directed(grad[None], Sobolev(1))[0]
        channel_directed_([grad], "sobolev:lam=1")
        assert torch.equal(grad, want)
    finally:
        cpu.unavailable.cache_clear()


def test_with_a_damaged_cache_on_disk_the_kernels_are_compiled_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def run():
        """Nothing is loaded yet, as in a new process, whose imports would take longer than the compiler."""
        for remembered in (cpu.compiled_worker, cpu.unavailable, kernels.worker):
            remembered.cache_clear()
        grads = [torch.ones(4, 3)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                channel_directed_(grads, "reweighted:lam=3", backend="cpu")
        return select_backend(grads[0], "reweighted:lam=3")[0], [str(each.message) for each in said]

    assert run() == ("cpu", [])
    files = list(tmp_path.rglob("*.nb?"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:20])
    backend, (said,) = run()
    assert backend == "cpu"
    assert "set NUMBA_CACHE_DIR to an empty, writable folder" in said


def test_weights_are_cached_within_bytes():
    for i in range(40):
        cpu.weights_for(Sobolev(1.0 + i), (50_000,), False)
    assert cpu.weights_for.cache_bytes() <= 32 * 2**20
    assert sobolev_weights.sobolev.cache_bytes() <= 32 * 2**20
    again = cpu.weights_for(Sobolev(40.0), (50_000,), False)
    assert again[0] is cpu.weights_for(Sobolev(40.0), (50_000,), False)[0]

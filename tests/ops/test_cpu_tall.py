"""Tensors of very many channels on the CPU, which are divided into chunks of channels."""

import pytest
import torch

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed_
from cdgrad.ops import eager
from cdgrad.ops.cpu import chunks
from cdgrad.ops.cpu import threads as thread_team
from cdgrad.ops.memory_layout import columns_of

METRICS = [
    ReweightedL2(3),
    Sobolev(1e-6),
    Sobolev(0.01),
    Sobolev(1e3, "periodic"),
    MeanSobolev(1e-6),
    MeanSobolev(0.01, "periodic"),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


@pytest.fixture
def small(monkeypatch):
    """Chunks of 16 channels and at most 80 columns."""
    monkeypatch.setattr(chunks, "CHANNELS", 9)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16 * 4 * 80)
    monkeypatch.setattr(chunks, "WIDEST", 80)


@every_metric
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("n", [10, 16, 17, 100])
def test_chunks_solve_the_whole_system(metric, mean, n, small):
    torch.manual_seed(n)
    memory = torch.randn(n, 205) + mean
    grad = memory[:, 1:]  # unaligned rows, further apart than they are long, and a vector that is not full
    exact = eager.directed(grad.double()[None], metric)[0]
    channel_directed_([grad], metric, backend="cpu")
    assert float((grad.double() - exact).norm() / exact.norm()) < 1e-7
    assert float((grad.double() - exact).abs().max() / exact.abs().max()) < 3e-7


def test_alternating_columns_of_zero_mean(small):
    """The result is 2e-7 of the gradient, and still right to float32."""
    for metric in (Sobolev(1e3), Sobolev(1e3, "periodic")):
        grad = torch.tensor([1.0, -1.0]).repeat(50)[:, None].expand(100, 130).clone()
        exact = eager.directed(grad.double()[None], metric)[0]
        channel_directed_([grad], metric, backend="cpu")
        assert float((grad.double() - exact).norm() / exact.norm()) < 1e-6


@every_metric
def test_the_same_bits_whatever_the_number_of_threads(metric, threads, monkeypatch):
    """Also from a pool of threads that are not OpenMP's, which have no number."""
    grad = torch.randn(2049, 131, generator=torch.Generator().manual_seed(0))
    assert chunks.takes(columns_of(grad.shape, grad.stride(), 0, 1))
    results = []
    for count, openmp in ((1, True), (2, True), (5, True), (3, False)):
        threads(count)
        with monkeypatch.context() as inside:
            if not openmp:
                inside.setattr(thread_team, "openmp", lambda: None)
            results.append(grad.clone())
            channel_directed_([results[-1]], metric, backend="cpu")
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("shape", "dim"), [((2048, 300), 0), ((3000, 100), 0), ((300, 3000), 1), ((5, 3000, 200), 1)]
)
def test_other_tensors_are_divided_into_blocks(shape, dim):
    """Their results must keep their bits."""
    grad = torch.empty(shape, device="meta")
    assert not chunks.takes(columns_of(grad.shape, grad.stride(), dim, 1))

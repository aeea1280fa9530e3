"""What the eager backend promises beyond the contract: no loop over channels, full precision, one batch."""

import numpy as np
import pytest
import torch
from every_metric import METRICS, every_metric
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from cdgrad import MeanSobolev, ReweightedL2, Sobolev, channel_directed, channel_directed_
from cdgrad.ops import cyclic_reduction, eager

VIEWS = "view", "detach", "empty", "permute", "expand", "select", "slice", "split", "squeeze", "transpose"


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def launches(self):
        return [name for name in self.names if not any(view in name for view in VIEWS)]


@every_metric
@pytest.mark.parametrize("n", [128, 129, 1000, 1009, 16384])
def test_few_operations_whatever_the_channels_and_none_from_the_host(metric, n):
    grad = torch.randn(n, 3)
    channel_directed_([grad], metric, backend="eager")  # the weights are cached now
    with Operations() as seen:
        channel_directed_([grad], metric, backend="eager")
    assert len(seen.launches) <= 14  # 10 where equal pieces fit, 5 for a re-weighting
    assert not [name for name in seen.names if "lift_fresh" in name or "scalar_tensor" in name]


@pytest.mark.parametrize("n", [129, 256, 1009, 16384])
@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0, 1e3])
def test_pieces_agree_with_the_cyclic_reduction(n, lam):
    """Two ways that have no formula in common."""
    x = torch.randn(1, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for family in (Sobolev, MeanSobolev):
        for boundary in ("free", "periodic"):
            want = cyclic_reduction.directed(x, family(lam, boundary))
            got = eager.directed(x, family(lam, boundary))
            assert (got - want).norm() <= 1e-9 * want.norm()


@every_metric
@pytest.mark.parametrize("n", [100, 300])
def test_gradients_of_one_channel_count_are_one_batch(metric, n):
    grads = [torch.randn(n, 3, 2), torch.randn(2, 2 * n).T.contiguous().T, torch.randn(n, 1)]
    views = [grads[0][None], grads[1].T.view(2, n, 2), grads[2][None]]
    want = [eager.directed(view, metric) for view in views]
    eager._directed_batch_(list(views), metric)
    for got, expected in zip(views, want, strict=True):
        torch.testing.assert_close(got, expected)


@every_metric
@pytest.mark.parametrize("n", [100, 256])
def test_the_last_operation_of_a_batch_writes_to_the_gradients(metric, n):
    """There is no copy of the result, also where memory has the channels of the input last."""
    rows = torch.randn(1, n, 3, 2)
    last = torch.randn(n, 4, 3, 3).to(memory_format=torch.channels_last)[None]
    want = [eager.directed(x, metric) for x in (rows, last)]
    with Operations() as seen:
        eager._directed_batch_([rows, last], metric)
    torch.testing.assert_close([rows, last], want)
    written = [name for name in seen.launches if "baddbmm" in name or "add.out" in name]
    assert len(written) >= 2
    assert len(seen.launches) <= 13
    assert not [name for name in seen.launches if "clone" in name or "foreach_copy" in name]


@pytest.mark.parametrize("largest", [1.7e38, 3.4e38])
@pytest.mark.parametrize("n", [4, 300])
def test_finite_results_near_the_largest_float_stay_finite(largest, n):
    rng = np.random.default_rng(0)
    alternating = np.where(np.arange(n) % 4, -largest, largest)[:, None] * np.ones((1, 2))
    for values in (rng.uniform(-largest, largest, (n, 2)), alternating, np.full((n, 2), largest)):
        for metric in (
            *METRICS[:3],
            ReweightedL2(1e308),
            Sobolev(1e308),
            MeanSobolev(10.0),
            MeanSobolev(1e308),
        ):
            x = torch.from_numpy(values.astype("float32"))
            want = channel_directed(x.double(), metric)
            got = channel_directed(x, metric)
            assert got.isfinite().all() or want.abs().max() > 3.4e38
            reachable = want.abs() < 3.4e38
            torch.testing.assert_close(
                got[reachable].double(), want[reachable], rtol=1e-5, atol=largest * 1e-6
            )
    for metric in (ReweightedL2(3), Sobolev(0.01), Sobolev(1e308)):
        x = torch.full((n, 2), 1.7e308, dtype=torch.float64)
        torch.testing.assert_close(channel_directed(x, metric), x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [13, 300, 5000, 20000])
def test_finite_results_of_float64_near_the_largest_float_stay_finite(n):
    """A gradient times 2^1023 gives the result times 2^1023, because the operator is linear."""
    small = torch.rand(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.8 - 0.9
    small[:, 0], small[:, 1] = 0.9, torch.linspace(-0.9, 0.9, n)
    families = [f(lam, b) for f in (Sobolev, MeanSobolev) for lam in (0.5, 1e6) for b in ("free", "periodic")]
    for metric in (ReweightedL2(3), *families):
        got = channel_directed(small * 2.0**1023, metric) / 2.0**1023
        torch.testing.assert_close(got, channel_directed(small, metric), rtol=0, atol=1e-14)


def test_reduced_precision_of_the_program_is_not_used_and_comes_back():
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    x = torch.randn(1, 256, 4096)
    want = eager.directed(x, Sobolev(0.01))
    try:
        switch.fp32_precision = "bf16"
        assert torch.equal(eager.directed(x, Sobolev(0.01)), want)
        assert switch.fp32_precision == "bf16"
        # Where the program has chosen one for all backends, its next choice counts, too.
        switch.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"
        assert torch.equal(eager.directed(x, Sobolev(0.01)), want)
        torch.backends.fp32_precision = "bf16"
        assert switch.fp32_precision == "bf16"
    finally:
        torch.backends.fp32_precision = "none"
        switch.fp32_precision = before


@every_metric
def test_the_default_dtype_does_not_matter(metric):
    grads = [torch.randn(n, 3, dtype=torch.float32) for n in (6, 300)]
    want = [channel_directed(grad, metric) for grad in grads]
    torch.set_default_dtype(torch.float64)
    try:
        eager._weights.cache_clear()
        got = [channel_directed(grad, metric) for grad in grads]
    finally:
        torch.set_default_dtype(torch.float32)
        eager._weights.cache_clear()
    assert all(map(torch.equal, got, want))


@every_metric
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_autocast_does_not_reach_the_products(metric, backend):
    """A step inside the context of autocast, where products of float32 are products of bfloat16."""
    grad = torch.randn(256, 20)
    want, got = channel_directed(grad, metric), grad.clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(channel_directed(grad, metric), want)
        channel_directed_([got], metric, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def first_on_the_meta_device(grad, metric):
    with torch.device("meta"):
        return channel_directed(grad, metric)


def first_with_fake_tensors(grad, metric):
    with FakeTensorMode():
        channel_directed(torch.ones(grad.shape), metric)
    return channel_directed(grad, metric)


def first_traced(grad, metric):
    traced = make_fx(lambda g: channel_directed(g, metric), tracing_mode="fake")(torch.ones(grad.shape))
    return traced(grad)


@every_metric
@pytest.mark.parametrize(
    ("first", "n"),
    [
        (first_on_the_meta_device, 300),
        (first_with_fake_tensors, 300),
        (first_with_fake_tensors, 16385),
        (first_traced, 6),
        (first_traced, 300),
    ],
)
def test_weights_that_are_kept_have_values_whatever_needed_them_first(metric, first, n):
    grad = torch.randn(n, 2)
    want = channel_directed(grad, metric)
    eager._weights.cache_clear()
    cyclic_reduction._weights.cache_clear()
    assert torch.equal(first(grad, metric), want)
    assert torch.equal(channel_directed(grad, metric), want)


@every_metric
def test_torch_func_sees_through(metric):
    x, t = torch.randn(2, 300, 4, dtype=torch.float64)
    value, tangent = torch.func.jvp(lambda v: channel_directed(v, metric), (x,), (t,))
    torch.testing.assert_close(value, channel_directed(x, metric))
    torch.testing.assert_close(tangent, channel_directed(t, metric))
    rows = torch.stack([x, t])
    together = torch.func.vmap(lambda v: channel_directed(v, metric))(rows)
    torch.testing.assert_close(together, torch.stack([value, tangent]))


@pytest.mark.parametrize("boundary", ["free", "periodic"])
@pytest.mark.parametrize("family", [Sobolev, MeanSobolev])
def test_the_second_cyclic_reduction_copies_nothing_from_the_host(family, boundary, monkeypatch):
    """So that a CUDA graph can hold it."""
    x = torch.randn(1, 37, 3)
    first = cyclic_reduction.directed(x, family(0.3, boundary))
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "as_tensor", None)
    assert torch.equal(cyclic_reduction.directed(x, family(0.3, boundary)), first)


def test_memory_that_no_channel_fills_is_not_read():
    """The last piece of 1,009 channels is shorter: torch fills new memory with nan here."""
    x, metric = torch.randn(1009, 2, dtype=torch.float64), Sobolev(0.1)
    want = channel_directed(x, metric)
    torch.use_deterministic_algorithms(True)
    try:
        got = channel_directed(x, metric)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got, want)

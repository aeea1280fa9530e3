"""The contract: laws that every backend of the operator satisfies, against the dense reference."""

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgrad import L2, MeanSobolev, ReweightedL2, Sobolev
from cdgrad.metrics import eigenvalues
from cdgrad.reference import directed

every_backend = pytest.mark.parametrize("operator", BACKENDS.values(), ids=BACKENDS.keys())
lams = st.floats(-4, 3).map(lambda exponent: 10.0**exponent)
boundaries = st.sampled_from(["free", "periodic"])
metrics = st.one_of(
    st.just(L2()),
    st.builds(ReweightedL2, lams),
    st.builds(Sobolev, lams, boundaries),
    st.builds(MeanSobolev, lams, boundaries),
)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def problems(draw):
    """An array, its channel axis and its groups."""
    groups, n = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    dim = draw(st.integers(0, len(shape)))
    shape.insert(dim, groups * n)
    x = np.random.default_rng(draw(seeds)).standard_normal(shape)
    return x, dim - (len(shape) if draw(st.booleans()) else 0), groups


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def close(actual, expected, tolerance=1e-9):
    """Within `tolerance` in norm, relative to the expected array."""
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected) + 1e-300


@every_backend
@given(problem=problems(), metric=metrics)
def test_equals_the_dense_reference(operator, problem, metric):
    x, dim, groups = problem
    close(operator(x, metric, dim, groups), directed(x, metric, dim, groups))


@every_backend
@given(metric=metrics, seed=seeds, n=st.integers(1, 12))
def test_riesz_identity_with_the_loss_of_a_network(operator, metric, seed, n):
    """<g~, k> in the metric is the derivative of the loss along k, taken by forward differentiation."""
    torch.manual_seed(seed)
    weight, k = torch.randn(2, n, 3, 2, 2, dtype=torch.float64)
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    def loss(w):
        return torch.nn.functional.conv2d(images, w).tanh().square().mean()

    gradient = torch.func.grad(loss)(weight).numpy()
    _, derivative = torch.func.jvp(loss, (weight,), (k,))
    representative = operator(gradient, metric, 0, 1)
    inner = metric.inner_product(representative, k.numpy()).sum()
    # The L2 product is a mean over channels, autograd's a sum.
    size = np.linalg.norm(gradient) * np.linalg.norm(k.numpy())
    assert abs(inner * n - derivative.item()) <= 1e-9 * size


@every_backend
@given(problem=problems(), metric=metrics, a=st.floats(-3, 3), b=st.floats(-3, 3), seed=seeds)
def test_linear(operator, problem, metric, a, b, seed):
    x, dim, groups = problem
    y = random(seed, *x.shape)
    whole = operator(a * x + b * y, metric, dim, groups)
    parts = a * operator(x, metric, dim, groups), b * operator(y, metric, dim, groups)
    assert np.linalg.norm(whole - sum(parts)) <= 1e-12 * sum(map(np.linalg.norm, parts)) + 1e-300


@every_backend
@given(problem=problems(), metric=metrics, seed=seeds)
def test_symmetric_and_positive_definite(operator, problem, metric, seed):
    x, dim, groups = problem
    y = random(seed, *x.shape)
    px, py = operator(x, metric, dim, groups), operator(y, metric, dim, groups)
    assert abs((px * y).sum() - (x * py).sum()) <= 1e-11 * np.linalg.norm(px) * np.linalg.norm(y) + (
        1e-11 * np.linalg.norm(py) * np.linalg.norm(x)
    )
    assert (px * x).sum() > 0


@every_backend
@given(problem=problems(), metric=metrics)
def test_keeps_the_mean(operator, problem, metric):
    x, dim, groups = problem

    def means(array):
        return np.stack([part.mean(0) for part in np.split(np.moveaxis(array, dim, 0), groups)])

    out = operator(x, metric, dim, groups)
    assert np.abs(means(out) - means(x)).max() <= 1e-12 * max(np.abs(out).max(), np.abs(x).max())


@every_backend
@given(seed=seeds, n=st.integers(1, 20), boundary=boundaries)
def test_identity_limits(operator, seed, n, boundary):
    x = random(seed, n, 3)
    close(operator(x, L2(), 0, 1), x, 0)
    close(operator(x, ReweightedL2(1), 0, 1), x, 1e-14)
    close(operator(x, Sobolev(1e-16, boundary), 0, 1), x, 1e-12)


@every_backend
@given(metric=metrics, n=st.integers(1, 16))
def test_scales_each_mode_by_the_spectrum(operator, metric, n):
    """Modes: DCT-II for free ends, real Fourier for periodic ones."""
    position, k = (np.arange(n) + 0.5)[:, None], np.arange(n)
    if getattr(metric, "boundary", "free") == "free":
        modes = np.cos(np.pi * k * position / n)
    else:
        modes = np.cos(2 * np.pi * k * position / n + 1)
    close(operator(modes, metric, 0, 1), modes * metric.spectrum(n))


@every_backend
@given(seed=seeds, n=st.integers(1, 16), lam=lams, shift=st.integers(0, 16))
def test_equivariance(operator, seed, n, lam, shift):
    x = random(seed, n, 2)
    rolled, mirrored = (np.arange(n) - shift) % n, np.arange(n)[::-1]
    permuted = np.random.default_rng(seed).permutation(n)
    cases = [(metric(lam, "periodic"), rolled) for metric in (Sobolev, MeanSobolev)]
    cases += [(metric(lam), mirrored) for metric in (Sobolev, MeanSobolev)]
    for metric, order in (*cases, (ReweightedL2(lam), permuted)):
        result, moved = np.hsplit(operator(np.hstack([x, x[order]]), metric, 0, 1), 2)
        close(moved, result[order])


def h1_kernel(s, lam):
    return np.cosh((np.abs(s) - 0.5) / np.sqrt(lam)) / (2 * np.sqrt(lam) * np.sinh(0.5 / np.sqrt(lam)))


def mean_kernel(s, lam):
    return 1 + (s**2 / 2 - np.abs(s) / 2 + 1 / 12) / lam


@every_backend
@pytest.mark.parametrize("lam", [0.005, 1 / 24, 0.3])
@pytest.mark.parametrize(("family", "kernel"), [(Sobolev, h1_kernel), (MeanSobolev, mean_kernel)])
def test_the_impulse_response_converges_to_the_periodic_kernel(operator, lam, family, kernel):
    """Second order: halving the spacing quarters the error."""
    errors = []
    for n in (64, 128, 256, 512):
        impulse = np.zeros((n, 1))
        impulse[0] = n
        response = operator(impulse, family(lam, "periodic"), 0, 1)[:, 0]
        errors.append(np.abs(response - kernel(np.arange(n) / n, lam)).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 3.8) & (ratios < 4.2)), ratios


@every_backend
@pytest.mark.parametrize("lam", [0.005, 0.3])
def test_free_ends_converge_to_the_natural_condition(operator, lam):
    """cos(pi k s) has zero slope at both ends; its exact response divides it by (1 +) lam (pi k)^2."""
    for family, offset in ((Sobolev, 1), (MeanSobolev, 0)):
        errors = []
        for n in (32, 64, 128):
            mode = np.cos(3 * np.pi * (np.arange(n) + 0.5) / n)[:, None]
            exact = mode / (offset + lam * (3 * np.pi) ** 2)
            errors.append(np.abs(operator(mode, family(lam), 0, 1) - exact).max())
        ratios = np.divide(errors[:-1], errors[1:])
        assert np.all((ratios > 3.8) & (ratios < 4.2)), ratios


@pytest.mark.parametrize("n", [64, 2048, 8192])
@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0, 1e3])
@every_backend
def test_float32_accuracy(operator, n, lam):
    """Within 1e-6 of float64 in norm, also where rounding the mean to float32 would ruin the result."""
    if operator is BACKENDS.get("triton") and n > 64:
        pytest.skip("minutes in the interpreter; test_triton.py measures the same arithmetic in numpy")
    if operator is BACKENDS["jax"] and n == 2048:
        pytest.skip("seconds of compilation; only the depth of the program is between those of 64 and 8192")
    noise = random(0, n, 4)
    x = np.hstack([noise, noise - noise.mean(0), noise + 100]).astype(np.float32)
    for metric in (
        ReweightedL2(lam),
        *(family(lam, b) for family in (Sobolev, MeanSobolev) for b in ("free", "periodic")),
    ):
        results = operator(x, metric, 0, 1), operator(x.astype(np.float64), metric, 0, 1)
        for single, double in zip(*(np.hsplit(each, 3) for each in results), strict=True):
            close(single, double, 1e-6)


@every_backend
@given(problem=problems(), metric=metrics)
@settings(max_examples=20)
def test_bit_stable(operator, problem, metric):
    x, dim, groups = problem
    for array in (x, x.astype(np.float32)):
        assert np.array_equal(operator(array, metric, dim, groups), operator(array, metric, dim, groups))


@pytest.mark.parametrize("boundary", ["free", "periodic"])
def test_the_large_system_agrees_with_its_eigenvalues(boundary):
    """The reference is too small to see lam n^2 = 1e11; the eigenbasis is not."""
    n, lam = 16384, 1e3
    x = torch.from_numpy(random(0, n, 1))
    y = torch.from_numpy(BACKENDS["eager"](x.numpy(), Sobolev(lam, boundary), 0, 1))
    mirrored = [torch.cat([v, v.flip(0)]) if boundary == "free" else v for v in (x, y)]
    frequencies = [torch.fft.fft(v[:, 0]) for v in mirrored]
    factors = 1 / (1 + lam * eigenvalues(n, boundary))
    gain = (frequencies[1] / frequencies[0])[:n]
    smooth = slice(0, 100)  # beyond, the output is rounding noise
    assert np.allclose(gain[smooth].real, factors[smooth], rtol=1e-6)

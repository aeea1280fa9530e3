import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdgrad import ReweightedL2, Sobolev, channel_directed, step_probe
from cdgrad.diagnostics import (
    alignment,
    divergence,
    mean_share,
    roughness,
    sharpness,
    signal_and_noise,
    similarity_order,
)
from cdgrad.machine import has_float64


class Apples(torch.Tensor):
    """A tensor on a GPU without float64."""

    @property
    def device(self):
        return torch.device("mps")

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("the MPS framework doesn't support float64")


def test_a_gpu_without_float64_is_measured_on_the_host():
    x, y = torch.randn(2, 6, 4)
    there, other = x.as_subclass(Apples), y.as_subclass(Apples)
    assert roughness(there) == roughness(x)
    assert alignment([there], [other]) == alignment([x], [y])
    assert divergence([there], [other]) == divergence([x], [y])
    assert similarity_order(there).equal(similarity_order(x))
    assert step_probe._is_derived(there * 2, there)


@pytest.mark.parametrize("has", [True, False])
def test_which_devices_have_float64(has, monkeypatch):
    properties = SimpleNamespace(has_fp64=has)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: properties)
    has_float64.cache_clear()
    found = [has_float64(torch.device(name)) for name in ("cpu", "cuda:0", "mps", "xpu:0")]
    has_float64.cache_clear()
    assert found == [True, True, False, has]


@pytest.mark.parametrize("n", [2, 3, 16, 256])
def test_white_noise_has_roughness_1_whatever_the_channel_count(n):
    noise = torch.randn(n, 20_000, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert roughness(noise) == pytest.approx(1, abs=0.02)


def test_roughness_equals_its_definition_by_a_dense_operator():
    n, h = 7, torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    D = n * np.diff(np.eye(n), axis=0)
    deviations = h - h.mean(axis=0)
    expected = np.sum(h * (D.T @ D @ h)) / (2 * n**2 * np.sum(deviations**2))
    assert roughness(torch.from_numpy(h)) == pytest.approx(expected, rel=1e-12)


def test_smooth_channels_are_near_0_and_alternating_ones_near_2():
    s = torch.linspace(0, 1, 64)
    assert roughness(torch.sin(3 * s)) < 0.01
    assert roughness((-1.0) ** torch.arange(64)) == pytest.approx(2, abs=0.05)


def test_the_axis_and_the_groups_are_respected():
    ramp = torch.arange(8.0)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    weight = noise * 0 + ramp
    assert roughness(weight, dim=1) == pytest.approx(roughness(ramp))
    two = torch.cat([ramp, ramp])
    assert roughness(two, groups=2) == pytest.approx(roughness(ramp))
    assert roughness(two) > roughness(two, groups=2)  # the step from 7 back to 0


def test_scale_and_offset_do_not_matter_and_a_constant_has_none():
    h = torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert roughness(5 * h + 3) == pytest.approx(roughness(h))
    assert math.isnan(roughness(torch.ones(4, 2)))
    assert math.isnan(roughness(torch.randn(1, 2)))


def test_alignment_of_a_known_spectrum():
    # One column with mean part 1 and deviation of norm 3: P divides the latter by lam.
    lam = 2.0
    g = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 2
    g = g + 3 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) / 2
    directed = channel_directed(g, ReweightedL2(lam))
    cosine, ratio = alignment([g], [directed])
    norm = math.sqrt(1 + (3 / lam) ** 2)
    assert ratio == pytest.approx(norm / math.sqrt(10))
    assert cosine == pytest.approx((1 + 9 / lam) / (math.sqrt(10) * norm))


def test_alignment_over_several_weights_is_of_one_long_vector():
    a, b = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])], [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
    cosine, ratio = alignment(a, b)
    assert (cosine, ratio) == pytest.approx((4 / 5, 1.0))


def test_alignment_of_nothing_is_undefined():
    assert all(map(math.isnan, alignment([], [])))
    assert all(map(math.isnan, alignment([torch.zeros(2)], [torch.zeros(2)])))
    cosine, ratio = alignment([torch.ones(2)], [torch.zeros(2)])
    assert math.isnan(cosine)
    assert ratio == 0


def noisy(signal, scale, count, seed=0):
    """`count` gradients: the signal plus white noise of standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)
    return [signal + scale * torch.randn(signal.shape, generator=generator) for _ in range(count)]


def test_white_noise_has_a_flat_spectrum_and_no_signal():
    spectrum = signal_and_noise(noisy(torch.zeros(16, 5_000), 3.0, count=4))
    torch.testing.assert_close(spectrum.noise, torch.full((16,), 9.0).double(), rtol=0.05, atol=0)
    assert spectrum.signal.abs().max() < 0.25  # its standard deviation is 9 / sqrt(8 * 5000) = 0.05
    assert spectrum.signal.min() < 0  # unbiased, so zero is met from both sides


def test_a_planted_mode_is_found_in_the_noise_with_its_power():
    n, k = 16, 3
    mode = torch.cos(math.pi * k * (torch.arange(n) + 0.5) / n)
    signal = mode[:, None] * torch.ones(5_000)
    spectrum = signal_and_noise(noisy(signal, 2.0, count=8))
    assert spectrum.signal[k] == pytest.approx(n / 2, rel=0.03)
    assert spectrum.signal.argmax() == k
    assert spectrum.signal[torch.arange(n) != k].abs().max() < 0.1
    assert spectrum.ratio[k] == pytest.approx(n / 2 / 4, rel=0.05)


def test_signal_and_noise_are_unbiased_for_few_gradients():
    signal = torch.tensor([1.0, 0.5, 0.0, -1.0])[:, None]
    true = signal_and_noise([signal, signal]).signal
    estimates = [signal_and_noise(noisy(signal, 1.0, count=2, seed=s)) for s in range(4_000)]
    signals = torch.stack([estimate.signal for estimate in estimates])
    noises = torch.stack([estimate.noise for estimate in estimates])
    assert ((signals.mean(0) - true).abs() < 4 * signals.std(0) / math.sqrt(len(estimates))).all()
    assert ((noises.mean(0) - 1).abs() < 4 * noises.std(0) / math.sqrt(len(estimates))).all()


def test_modes_keep_the_energy_and_mode_0_is_the_mean():
    signal = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spectrum = signal_and_noise([signal, signal])
    assert spectrum.signal.sum() * 4 == pytest.approx(float(signal.square().sum()))
    assert spectrum.signal[0] == pytest.approx(float(6 * signal.mean(0).square().mean()))
    assert spectrum.noise.abs().max() == 0
    assert spectrum.ratio.isnan().all()


def test_the_modes_are_those_that_the_metric_scales():
    """The factors found from what the operator does to a gradient are the metric's spectrum, squared."""
    metric = Sobolev(0.02)
    g = torch.randn(8, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before, after = (signal_and_noise([x, x]).signal for x in (g, channel_directed(g, metric)))
    np.testing.assert_allclose((after / before).numpy(), metric.spectrum(8) ** 2, rtol=1e-9)


def test_the_spectrum_respects_axis_and_groups():
    grads = noisy(torch.zeros(3, 8, 2), 1.0, count=2)
    along_1 = signal_and_noise(grads, dim=1)
    moved = signal_and_noise([g.movedim(1, 0) for g in grads])
    assert torch.equal(along_1.signal, moved.signal)
    halves = signal_and_noise([g.movedim(1, 0) for g in grads], groups=2)
    parts = [signal_and_noise([g[:, half] for g in grads], dim=1) for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(halves.noise, (parts[0].noise + parts[1].noise) / 2)
    assert len(halves.signal) == 4


def test_one_gradient_shows_no_noise():
    with pytest.raises(ValueError, match="at least 2 gradients to estimate the noise, got 1"):
        signal_and_noise([torch.ones(3)])


@pytest.mark.parametrize("n", [2, 16])
def test_the_mean_of_white_noise_holds_one_share_in_n(n):
    noise = torch.randn(n, 20_000, generator=torch.Generator().manual_seed(n))
    assert mean_share(noise) == pytest.approx(1 / n, rel=0.03)
    assert mean_share(torch.ones(n, 3)) == pytest.approx(1)
    assert mean_share(torch.tensor([1.0, -1.0, 2.0, 2.0]), groups=2) == pytest.approx(0.8)
    assert math.isnan(mean_share(torch.zeros(n, 2)))


def test_sorting_by_similarity_recovers_a_shuffled_smooth_weight():
    s = torch.linspace(0, 1, 32)
    weight = torch.stack([torch.sin(3 * s), s, s**2], dim=1)
    shuffled = weight[torch.randperm(32, generator=torch.Generator().manual_seed(3))]
    order = similarity_order(shuffled)
    assert sorted(order.tolist()) == list(range(32))
    assert roughness(shuffled) > 0.5
    assert roughness(shuffled[order]) == pytest.approx(roughness(weight), rel=1e-5)
    assert torch.equal(similarity_order(shuffled.T, dim=1), order)


def test_divergence_is_0_for_copies_and_2_for_opposites():
    a = [torch.randn(500, 3), torch.zeros(4)]
    assert divergence(a, a) == 0
    assert divergence(a[:1], [-a[0]]) == pytest.approx(2)
    assert divergence([torch.ones(2)], [torch.tensor([3.0, 1.0])]) == pytest.approx(0.5)
    strangers = divergence([torch.randn(200000)], [torch.randn(200000)])
    # 2 where the signs differ; elsewhere the mean of 2 |tan| from -45 to 45 degrees, 4 log(2) / pi.
    assert strangers == pytest.approx(1 + 2 * math.log(2) / math.pi, abs=0.01)
    with pytest.raises(ValueError, match="equal shapes"):
        divergence([torch.ones(2)], [torch.ones(3)])


def test_the_sharpness_of_a_quadratic_is_its_largest_eigenvalue():
    torch.manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    A = Q @ torch.diag(torch.linspace(-3, 7, 12, dtype=torch.float64)) @ Q.T
    w = torch.randn(12, dtype=torch.float64, requires_grad=True)
    assert sharpness(w @ A @ w / 2, [w], iterations=500, tolerance=1e-10) == pytest.approx(7, rel=1e-6)
    assert sharpness(-(w @ A @ w), [w], iterations=500, tolerance=1e-10) == pytest.approx(-14, rel=1e-6)
    assert sharpness(w.sum() * 2, [w]) == 0


def test_the_sharpness_of_a_linear_network_is_that_of_its_dense_hessian():
    torch.manual_seed(1)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    sizes, shapes = [12, 8], [(4, 3), (2, 4)]

    def loss(flat):
        first, second = (v.view(s) for v, s in zip(flat.split(sizes), shapes, strict=True))
        return ((x @ first.T @ second.T - y) ** 2).mean()

    flat = torch.randn(20, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    weights = [v.clone().view(s).requires_grad_() for v, s in zip(flat.split(sizes), shapes, strict=True)]
    value = ((x @ weights[0].T @ weights[1].T - y) ** 2).mean()
    largest = sharpness(value, weights, iterations=1000, tolerance=1e-12)
    assert largest == pytest.approx(float(eigenvalues[eigenvalues.abs().argmax()]), rel=1e-6)


def test_gradient_descent_diverges_beyond_the_edge_of_stability():
    A = torch.diag(torch.tensor([5.0, 1.0]))
    for product, stable in ((1.9, True), (2.1, False)):
        w = torch.ones(2, requires_grad=True)
        rate = product / sharpness(w @ A @ w / 2, [w])
        for _ in range(200):
            (gradient,) = torch.autograd.grad(w @ A @ w / 2, w)
            w = (w - rate * gradient).detach().requires_grad_()
        assert (w.norm() < 1) == stable


def test_diagnostics_refuse_what_would_be_another_number():
    w = torch.randn(8, 3)
    with pytest.raises(ValueError, match=r"channels that 3 groups divide, got axis 0 of shape \(8, 3\)"):
        roughness(w, groups=3)
    with pytest.raises(TypeError, match=r"expected real numbers, got torch\.complex64"):
        roughness(w.cfloat())
    for other in ([w[:1]], [w, w], []):
        with pytest.raises(ValueError, match="two lists of gradients of equal shapes"):
            alignment([w], other)


def test_the_default_device_does_not_matter():
    grads = list(torch.randn(3, 8, 3))
    want = signal_and_noise(grads)
    w = torch.tensor([1.0, 1.0], requires_grad=True)
    with torch.device("meta"):
        got = signal_and_noise(grads)
        assert sharpness((w * w).sum(), [w]) == pytest.approx(2)
    assert torch.equal(got.noise, want.noise)

import math

import numpy as np
import pytest
import torch

from cdgrad import ReweightedL2, channel_directed
from cdgrad.diagnostics import agreement, roughness


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


def test_agreement_of_a_known_spectrum():
    # One column with mean part 1 and deviation of norm 3: P divides the latter by lam.
    n, lam = 4, 2.0
    g = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 2
    g = g + 3 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) / 2
    directed = channel_directed(g, ReweightedL2(lam))
    cosine, ratio = agreement([g], [directed])
    norm = math.sqrt(1 + (3 / lam) ** 2)
    assert ratio == pytest.approx(norm / math.sqrt(10))
    assert cosine == pytest.approx((1 + 9 / lam) / (math.sqrt(10) * norm))
    assert n == len(g)


def test_agreement_over_several_weights_is_of_one_long_vector():
    a, b = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])], [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
    cosine, ratio = agreement(a, b)
    assert (cosine, ratio) == pytest.approx((4 / 5, 1.0))


def test_agreement_of_nothing_is_undefined():
    assert all(map(math.isnan, agreement([], [])))
    assert all(map(math.isnan, agreement([torch.zeros(2)], [torch.zeros(2)])))
    cosine, ratio = agreement([torch.ones(2)], [torch.zeros(2)])
    assert math.isnan(cosine)
    assert ratio == 0

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, special
from scipy import stats as scipy_stats

from cdgrad.study.statistics import sequential
from cdgrad.study.statistics.paired import mean_interval


def marginal(x, scale):
    """log of the likelihood averaged over sigma (d sigma / sigma) and the effect, by numerical
    integration.
    """
    n = len(x)

    def over_sigma(effect):
        # integral of sigma^(-n-1) exp(-sum (x / sigma - effect)^2 / 2), with u = 1 / sigma
        a, b = np.square(x).sum(), effect * x.sum()
        inside = lambda u: u ** (n - 1) * math.exp(-(a * u * u - 2 * b * u + n * effect**2) / 2)  # noqa: E731
        return integrate.quad(inside, 0, np.inf, epsabs=0, epsrel=1e-10)[0]

    if not scale:
        return math.log(over_sigma(0.0))
    weight = lambda e: math.exp(-((e / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))  # noqa: E731
    return math.log(integrate.quad(lambda e: weight(e) * over_sigma(e), -9, 9, epsabs=0, epsrel=1e-9)[0])


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_e_is_the_ratio_of_the_averaged_likelihoods(scale):
    x = np.array([0.4, -0.3, 1.1, 0.8, 0.2])
    t = math.sqrt(len(x)) * x.mean() / x.std(ddof=1)
    assert sequential.log_e(len(x), t, scale) == pytest.approx(marginal(x, scale) - marginal(x, 0), abs=1e-7)
    bound = sequential.anytime_multiplier(20, 0.9, scale)
    assert sequential.log_e(20, bound, scale) == pytest.approx(math.log(10))


def test_e_begins_at_one_and_is_one_in_the_mean_under_the_null():
    assert sequential.log_e(1, math.inf) == pytest.approx(0, abs=1e-12)  # one value is its own scale
    for n in (2, 5, 20):
        density = lambda t, n=n: math.exp(  # noqa: E731
            special.gammaln(n / 2) - special.gammaln((n - 1) / 2) - math.log(math.pi * (n - 1)) / 2
            - n / 2 * math.log1p(t * t / (n - 1)) + float(sequential.log_e(n, t))
        )  # fmt: skip
        assert 2 * integrate.quad(density, 0, np.inf)[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("n", [6, 12, 100])
def test_at_the_ends_of_the_interval_e_is_one_over_alpha(n):
    x = np.random.default_rng(n).normal(0.3, 2.0, size=n)
    low, high = sequential.anytime_interval(x)
    for end in (low, high):
        assert sequential.anytime_p(x, mean=end) == pytest.approx(0.05, rel=1e-9)
    assert sequential.anytime_p(x, mean=low - 1e-6) < 0.05 < sequential.anytime_p(x, mean=low + 1e-6)
    narrow = mean_interval(x)
    assert low < narrow.low < narrow.high < high
    symmetric = sequential.anytime_multiplier(n) * x.std(ddof=1) / math.sqrt(n)  # the mixture's
    assert low <= x.mean() - symmetric + 1e-12
    assert high >= x.mean() + symmetric - 1e-12


def test_without_skewness_the_interval_is_that_of_the_mixture_t_test():
    x = np.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0]) + 0.2
    low, high = sequential.anytime_interval(x)
    half = float(sequential.anytime_multiplier(6)) * x.std(ddof=1) / math.sqrt(6)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))


def test_the_skewness_is_scipy_s():
    x = np.random.default_rng(2).exponential(size=(3, 9))
    assert sequential.skewness(x) == pytest.approx(scipy_stats.skew(x, axis=1, bias=False))
    assert sequential.skewness(np.ones(7)) == 0


@pytest.mark.parametrize("skew", [-2.0, -1e-7, 0.0, 0.4, 2.5])
def test_the_reach_solves_the_transformed_bound(skew):
    n = np.array([6, 20, 100])
    below, above = sequential.anytime_reach(n, np.full(3, skew))
    bound = sequential.anytime_multiplier(n) / np.sqrt(n)
    for w, q in ((below, bound), (-above, -bound)):
        transformed = w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * n)
        # the farther one of two bounds: this one, or the plain one
        assert np.minimum(np.abs(transformed - q), np.abs(w - q)) == pytest.approx(0, abs=1e-9)
        assert (np.abs(w) >= bound - 1e-12).all()
        assert (np.abs(transformed) >= np.abs(q) - 1e-9).all()


def test_a_long_tail_is_reached_for():
    x = np.random.default_rng(4).exponential(size=30)
    low, high = sequential.anytime_interval(x)
    assert high - x.mean() > x.mean() - low


def test_it_depends_on_neither_unit_nor_order():
    x = np.random.default_rng(1).normal(1, 1, size=9)
    assert sequential.anytime_p(1000 * x[::-1]) == pytest.approx(sequential.anytime_p(x))
    low, small = sequential.anytime_interval(x).low, sequential.anytime_interval(1e-12 * x).low
    assert small == pytest.approx(1e-12 * low, rel=1e-9)


def test_few_or_equal_values_bound_nothing():
    assert sequential.fewest_pairs() == 6
    bounded = np.isfinite(sequential.anytime_multiplier(np.arange(1, 8)))
    assert bounded.tolist() == [False] * 4 + [True] * 3
    fewest = sequential.fewest_pairs(0.995)  # one more than 6
    ends = sequential.anytime_multiplier(np.array([fewest - 1, fewest]), 0.995)
    assert np.isfinite(ends).tolist() == [False, True]
    assert np.isnan(sequential.anytime_interval([1.0, 2.0, 3.0, 4.0, 4.5])).all()
    assert math.isnan(sequential.anytime_p([1.0]))
    same = [100 * 3 / 360 - 100 * 1 / 360, *[100 * 17 / 360 - 100 * 15 / 360] * 9]  # equal up to rounding
    assert np.isnan(sequential.anytime_interval(same)).all()
    assert sequential.anytime_p(np.zeros(10)) == sequential.anytime_p([5.3 - 5.2, 4.3 - 4.2], mean=0.1) == 1
    assert sequential.anytime_p(same) == pytest.approx(11 ** (-9 / 2), rel=1e-9)


def test_a_look_after_every_value_keeps_the_level_where_the_t_interval_does_not():
    # 500 studies of no difference, looked at after each of 5 to 60 seeds
    x = np.random.default_rng(5).normal(size=(500, 60))
    n = np.arange(1, 61)
    mean = x.cumsum(1) / n
    s = np.sqrt(np.maximum(np.square(x).cumsum(1) / n - mean**2, 0) * n / np.maximum(n - 1, 1))
    t = np.abs(mean[:, 4:] / s[:, 4:] * np.sqrt(n[4:]))
    assert np.mean((t > sequential.anytime_multiplier(n[4:])).any(1)) <= 0.05
    assert np.mean((t > 2.0).any(1)) > 0.15


def test_the_committed_simulation_covers_as_the_documentation_says():
    record = json.loads((Path(__file__).parents[3] / "benchmarks/results/coverage.json").read_text())
    looks = {row["distribution"]: row["anytime interval, at every look"] for row in record["looks"]}
    rounded = {name: round(100 * share) for name, share in looks.items()}
    assert rounded == {"normal": 98, "heavy tails": 98, "few images": 98, "skewed": 96}
    assert all(row["random effects"] >= 0.94 for row in record["searches"])
    assert all(row["cluster bootstrap"] < 0.9 for row in record["searches"])

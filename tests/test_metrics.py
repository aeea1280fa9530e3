import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cdgrad
from cdgrad import L2, MeanSobolev, ReweightedL2, Sobolev, parse_metric
from cdgrad.metrics import Boundary, with_lam
from cdgrad.reference import gram

positive = st.floats(1e-300, 1e300)
boundaries = st.sampled_from(["free", "periodic"])


@given(positive, boundaries)
def test_text_round_trips(lam, boundary):
    for metric in (L2(), ReweightedL2(lam), Sobolev(lam, boundary), MeanSobolev(lam, boundary)):
        assert parse_metric(str(metric)) == metric
        assert hash(parse_metric(str(metric))) == hash(metric)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("l2", L2()),
        ("reweighted:lam=3", ReweightedL2(3)),
        ("sobolev:lam=0.01,boundary=periodic", Sobolev(0.01, "periodic")),
        (" mean-sobolev : boundary = free , lam = 5e-2 ", MeanSobolev(0.05)),
    ],
)
def test_parse(text, metric):
    assert parse_metric(text) == metric


def test_text_is_short():
    assert str(Sobolev(0.01)) == "sobolev:lam=0.01"
    assert str(MeanSobolev(2, boundary="periodic")) == "mean-sobolev:lam=2,boundary=periodic"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sobolef:lam=1", "did you mean 'sobolev'"),
        ("nothing-like-it", "known are l2, reweighted, sobolev, mean-sobolev"),
        ("", "unknown metric ''"),
        ("sobolev", "needs lam, for example 'sobolev:lam=0.01'"),
        ("reweighted", "needs lam, for example 'reweighted:lam=3'"),
        ("sobolev:0.1", "'0.1' is not key=value"),
        ("sobolev:lam=0.1,bounds=free", "'bounds=free' is not key=value.* takes lam, boundary"),
        ("sobolev:lam=1,lam=2", "is given twice"),
        ("sobolev:lam=1,boundary=open", "boundary must be 'free' or 'periodic', got 'open'"),
        ("reweighted:lam=much", "lam must be a number, got 'much'"),
        ("reweighted:lam=0", "must be positive and finite, got 0.0; for the ordinary gradient use L2"),
        ("reweighted:lam=-1", "must be positive and finite, got -1.0"),
        ("reweighted:lam=nan", "must be positive and finite, got nan"),
        ("reweighted:lam=inf", "must be positive and finite, got inf"),
        ("l2:lam=1", "l2 takes no arguments"),
        ("reweighted:3", r"did you mean lam=3\? reweighted takes lam"),
        ("sobolev:lam=0,01", r"'01' is not key=value with a key of this metric; sobolev takes lam, boundary"),
        ("sobolev:lambda=0.1", r"did you mean lam=0.1\? sobolev takes lam, boundary"),
    ],
)
def test_bad_text_says_what_to_write(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_metric(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lam", ["3", None, True, 1j, np.ones(2)])
def test_lam_must_be_a_number(lam):
    for family in (ReweightedL2, Sobolev, MeanSobolev):
        with pytest.raises(TypeError, match=r"lam must be a number, got .*; write for example"):
            family(lam)


def test_lam_is_stored_as_a_float():
    assert ReweightedL2(np.float32(3)) == ReweightedL2(3) == ReweightedL2(3.0)
    assert type(ReweightedL2(np.int64(3)).lam) is float


def test_metric_arguments_of_the_wrong_type():
    with pytest.raises(TypeError, match="a metric's text is a str, got int"):
        parse_metric(3)  # pyright: ignore[reportArgumentType]
    for metric in (
        L2(),
        ReweightedL2(3),
        *(f(1, b) for f in (Sobolev, MeanSobolev) for b in get_args(Boundary)),
    ):
        for n in (0, -3, 2.5, True):
            with pytest.raises(ValueError, match=f"positive integer, got {n}"):
                metric.spectrum(n)
    for family in (Sobolev, MeanSobolev):
        with pytest.raises(ValueError, match="boundary must be 'free' or 'periodic', got 'open'"):
            family(1, "open")
    with pytest.raises(ValueError, match="metric l2 has no lam"):
        with_lam(L2(), 3.0)
    with pytest.raises(ValueError, match="must be positive and finite, got 10000"):
        ReweightedL2(10**400)


@pytest.mark.parametrize("boundary", ["free", "periodic"])
def test_an_inner_product_is_that_of_each_column(boundary):
    h, k = np.random.default_rng(0).normal(size=(2, 5, 3))
    for metric in (L2(), ReweightedL2(0.3), Sobolev(0.02, boundary), MeanSobolev(0.7, boundary)):
        of_columns = [metric.inner_product(h[:, [j]], k[:, [j]])[0] for j in range(3)]
        np.testing.assert_allclose(metric.inner_product(h, k), of_columns)
        np.testing.assert_allclose(
            metric.inner_product(h, k[:, [0]])[1], metric.inner_product(h[:, 1], k[:, 0])
        )


def test_the_spectrum_is_one_for_integers_of_any_kind():
    for n in (np.int8(100), np.int32(70_000)):
        for metric in (
            Sobolev(0.01),
            Sobolev(0.01, "periodic"),
            MeanSobolev(0.1),
            MeanSobolev(0.1, "periodic"),
        ):
            np.testing.assert_array_equal(metric.spectrum(n), metric.spectrum(int(n)))


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("boundary", ["free", "periodic"])
def test_the_spectrum_is_that_of_the_inner_product(n, boundary):
    """Eigenvalues of the Gram matrix relative to the L2 one are the inverse factors."""
    for metric in (L2(), ReweightedL2(0.3), Sobolev(0.02, boundary), MeanSobolev(0.7, boundary)):
        spectrum = metric.spectrum(n)
        assert spectrum.shape == (n,)
        assert spectrum[0] == 1
        eigenvalues = np.linalg.eigvalsh(n * gram(metric, n))
        np.testing.assert_allclose(np.sort(1 / spectrum), eigenvalues, rtol=1e-9)


def test_the_mean_kernel_is_non_negative_from_lam_one_over_24():
    n = 400
    for lam, sign in ((1 / 24 * 1.01, 1), (1 / 24 * 0.99, -1)):
        response = np.fft.ifft(MeanSobolev(lam, "periodic").spectrum(n)).real * n
        assert math.copysign(1, response.min()) == sign


def test_importing_the_root_loads_no_tensor_library():
    code = (
        "import sys, cdgrad; cdgrad.Sobolev(1).spectrum(3); "
        "assert not {'torch', 'jax', 'numba'} & set(sys.modules); "
        "import cdgrad.attachment; assert callable(cdgrad.attach)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    for name in cdgrad.__all__:
        assert getattr(cdgrad, name).__doc__, name
    assert set(cdgrad.__all__) <= set(dir(cdgrad))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cdgrad.nothing  # noqa: B018

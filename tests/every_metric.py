"""The metrics that every kernel is tested with."""

import pytest

from cdgrad import MeanSobolev, ReweightedL2, Sobolev

METRICS = [
    ReweightedL2(3),
    Sobolev(0.01),
    Sobolev(0.01, "periodic"),
    MeanSobolev(0.01),
    MeanSobolev(0.01, "periodic"),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)

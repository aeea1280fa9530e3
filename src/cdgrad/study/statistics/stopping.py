"""When a cell of a study with ``seeds = { until, most }`` needs no more seeds."""

from __future__ import annotations

from collections.abc import Sequence

from cdgrad.study.spec import Spec
from cdgrad.study.statistics.paired import LEVEL
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p


def enough(spec: Spec, differences: Sequence[Sequence[float]]) -> bool:
    """Whether every comparison of a cell is decided, given its paired differences so far.

    One is decided where its `anytime_interval` is narrower than ``spec.until``, or where its `anytime_p`,
    times the number of comparisons of the study (Bonferroni), is below 0.05: then Holm's correction shows it,
    too, whatever the other comparisons come to.
    """
    return spec.tests > 0 and all(_decided(d, spec.until, spec.tests) for d in differences)


def _decided(differences: Sequence[float], until: float, tests: int) -> bool:
    low, high = anytime_interval(differences)
    # Without an interval (nan: few or equal values) nothing is decided.
    return high - low < until or (high >= low and anytime_p(differences) * tests < 1 - LEVEL)

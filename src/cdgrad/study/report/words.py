"""How a report names a study's measure and data, and writes its numbers: the same in every part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cdgrad.study.spec import ERROR, NO_METRIC, Measure, Spec
from cdgrad.study.statistics.paired import (
    LEVEL,
    Comparison,
    Interval,
    differences_of,
    standard_deviation,
)
from cdgrad.study.statistics.results import Place, Results

_DECIMALS = 2  # of a percentage


@dataclass(frozen=True)
class Words:
    """The words and numbers of one study.

    Attributes:
        measure: what the runs' results are.
        decimals: of its values and differences; None: three significant digits.
        data: what the runs are evaluated on, ``"images"``, or ``"data"`` where only the user's code knows.
        metrics: whether some arm changes the gradient, so that arms are described by their metrics.
    """

    measure: Measure = ERROR
    decimals: int | None = _DECIMALS
    data: str = "images"
    metrics: bool = True

    def number(self, value: float, sign: str = "") -> str:
        """A value or, with `sign` ``"+"``, a difference; a dash for nan. From 100 on, a percentage has one
        decimal.
        """
        if math.isnan(value):
            return "-"
        if self.decimals is None or (abs(value) >= 1e7 and not self.measure.percent):
            return f"{value:{sign}.3g}"
        shorter = self.measure.percent and abs(value) >= 99.995
        return f"{value:{sign}.{1 if shorter else self.decimals}f}"

    def interval(self, interval: Interval, sign: str = "") -> str:
        """Both ends of an interval; a dash where there is none.

        Only an end that is 0 is written as 0: readers look on which side of it an interval ends.
        """
        if math.isnan(interval.low):
            return "-"
        texts = [(end, self.number(end, sign)) for end in interval]
        low, high = (text if float(text) or not end else f"{end:{sign}.1g}" for end, text in texts)
        return f"{low} to {high}"

    def difference(self, value: float, sign: str = "+") -> str:
        """A difference with its unit, such as ``-0.52 points``."""
        return f"{self.number(value, sign)} {self.of_difference}".rstrip()

    def amount(self, value: float) -> str:
        """A stated number of units, such as ``1 point`` or ``0.5 points``."""
        unit = "point" if self.measure.percent and value == 1 else self.of_difference
        return f"{value:g} {unit}".rstrip()

    def rounded_up(self, value: float) -> str:
        """A positive difference with its unit, rounded up: a bound must not be understated."""
        if self.decimals is None:
            digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
        else:
            digits = self.decimals
        up = math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits
        return f"{up:.{max(digits, 0)}f} {self.of_difference}".rstrip()

    @property
    def of_difference(self) -> str:
        """The unit of a difference; may be empty."""
        return "points" if self.measure.percent else self.measure.unit

    @property
    def in_unit(self) -> str:
        """The unit of the values, behind a title."""
        unit = "percent" if self.measure.percent else self.measure.unit
        return f", in {unit}" if unit else ""

    @property
    def in_points(self) -> str:
        """What differences are in, behind a title."""
        return f", in {self.of_difference or self.measure.name}"

    @property
    def better_sign(self) -> str:
        """Which differences are better."""
        return f"{'negative' if self.measure.direction == 'min' else 'positive'} is better"

    @property
    def better_value(self) -> str:
        """Which values are better."""
        return f"{'lower' if self.measure.direction == 'min' else 'higher'} is better"

    def is_better(self, difference: float) -> bool:
        """Whether an arm with that mean difference is the better one."""
        return self.measure.sign * difference < 0

    def axis(self, of: str = "") -> str:
        """The title of an axis of values, such as ``test error, %``."""
        unit = "%" if self.measure.percent else self.measure.unit
        return f"{of.strip()} {self.measure.name}".strip() + (f", {unit}" if unit else "")


def in_cell(cell: str) -> str:
    """Where a sentence is about one of several cells, which it is."""
    return f" in {cell}" if cell else ""


def on_its_side(p: float, digits: int, kind: str) -> str:
    """p in so many digits of a format, or in more where rounding moves it across 0.05 or onto it."""
    texts = (f"{p:.{more}{kind}}" for more in range(digits, 17))
    return next((text for text in texts if (float(text) < 0.05) == (p < 1 - LEVEL)), repr(p))


def words(results: Results) -> Words:
    """Those of a study, with decimals that show two digits of a standard deviation."""
    spec = results.spec
    return words_of(spec, _scale(results))


def words_of(spec: Spec, scale: float | None = None) -> Words:
    """Those of a specification; `scale` is a typical standard deviation of its results, where it is known."""
    metrics = any(arm.metric != NO_METRIC or arm.centralize for arm in spec.arms.values())
    digits = decimals(scale)
    if spec.measure.percent and (digits is None or not scale or scale >= 10.0**-_DECIMALS):
        digits = _DECIMALS
    return Words(spec.measure, digits, "data" if spec.entry else "images", metrics)


def decimals(scale: float | None) -> int | None:
    """Decimals that show two digits of `scale`; None where it is not known, or needs more than six."""
    if not scale or not math.isfinite(scale):
        return None
    needed = max(0, 1 - math.floor(math.log10(scale)))
    return needed if needed <= 6 else None


def _scale(results: Results) -> float | None:
    """The smallest standard deviation of a comparison's differences, or else of an arm's results.

    Without runs that diverged, beside whose values the others have no decimals.
    """
    value = results.spec.measure.value
    values = [
        [value(run.error) for run in by_seed.values() if run.status == "ok"] or results.errors(*place)
        for place, by_seed in results.finished.items()
        if by_seed
    ]
    rounding = 1e-9 * max((abs(value) for of_arm in values for value in of_arm), default=0.0)
    compared = [_sd_of_kept(results, place, c) for place, (c, _) in results.comparisons.items()]
    for deviations in (compared, map(standard_deviation, values)):
        if larger := [sd for sd in deviations if math.isfinite(sd) and sd > rounding]:
            return min(larger)
    return None


def enumerated(names: Sequence[str]) -> str:
    """Names in a sentence, such as ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _sd_of_kept(results: Results, place: Place, comparison: Comparison) -> float:
    """The standard deviation of the differences of runs that did not diverge; of all, where there are few."""
    value = results.spec.measure.value
    pairs = [(a, b) for a, b in results.paired_runs(*place) if a.status == b.status == "ok"]
    if len(pairs) < 2 or results.spec.replicates > 1:
        return comparison.sd
    of_arm, of_reference = ([value(run.error) for run in runs] for runs in zip(*pairs, strict=True))
    return standard_deviation(differences_of(of_arm, of_reference))


def counted(n: int, what: str) -> str:
    """A number of things, such as ``1 seed`` or ``2 seeds``."""
    return f"{n} {what}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """A time in the unit that a person would use."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 2 else f"{seconds:.0f} s"

"""Metrics on convolution weights, as values: inner product, spectrum, text form.

Nothing here knows a tensor library; torch, Triton and JAX read the same objects. The mathematics is
derived in docs/theory.md from the abstract of arXiv 2008.10766; the symbol ``lam`` and its range are
cdgrad's own, the paper's are not known.

A weight is a function h of the output channel s in [0, 1], sampled at n cell centres with spacing 1/n.
All formulas hold per column, that is for one fixed input channel and kernel position.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Boundary = Literal["free", "periodic"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """An inner product on functions of the channel; its gradient is the Riesz representative.

    The gradient g~ of a loss with ordinary gradient g satisfies ``<g~, k> = mean(g k)`` for every k.
    Abstract: use `L2`, `ReweightedL2`, `Sobolev` or `MeanSobolev`.
    """

    family: ClassVar[str]

    def inner_product(self, h: Array, k: Array) -> Array:
        """``<h, k>`` along axis 0, which is the channel; other axes broadcast. Dimensionless."""
        raise NotImplementedError

    def spectrum(self, n: int) -> Array:
        """The n factors by which the operator g -> g~ scales its modes, mode 0 (the mean) first.

        The modes are the DCT-II basis for ``boundary="free"`` and the Fourier basis for
        ``"periodic"``; the re-weighted metric has the same factor on every mode but the mean.

        Raises:
            ValueError: n is not a positive integer.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        shown = [f"{name}={_text(value)}" for name, value, default in given if value != default]
        return ":".join([self.family, *([",".join(shown)] if shown else [])])


@dataclass(frozen=True)
class L2(Metric):
    """The ordinary gradient: ``<h, k> = mean(h k)``, so g~ = g. Text: ``l2``.

    >>> str(L2())
    'l2'
    """

    family: ClassVar[str] = "l2"

    def inner_product(self, h: Array, k: Array) -> Array:
        return np.mean(h * k, axis=0)

    def spectrum(self, n: int) -> Array:
        return np.ones(_positive_count(n))


@dataclass(frozen=True)
class ReweightedL2(Metric):
    """``<h, k> = mean(h) mean(k) + lam mean((h - mean h)(k - mean k))``. Text: ``reweighted:lam=3``.

    The gradient is ``g~ = mean(g) + (g - mean(g)) / lam``: the mean over output channels is kept and
    the deviation from it divided by lam. lam = 1 is the identity; lam > 1 damps the deviation,
    lam < 1 amplifies it. The order of the channels does not matter.

    Args:
        lam: dimensionless, positive and finite.

    Raises:
        TypeError, ValueError: lam is not a positive finite number.

    >>> ReweightedL2(4).spectrum(3)
    array([1.  , 0.25, 0.25])
    """

    lam: float
    family: ClassVar[str] = "reweighted"

    def __post_init__(self) -> None:
        _store_lam(self)

    def inner_product(self, h: Array, k: Array) -> Array:
        mean_h, mean_k = h.mean(axis=0), k.mean(axis=0)
        return mean_h * mean_k + self.lam * np.mean((h - mean_h) * (k - mean_k), axis=0)

    def spectrum(self, n: int) -> Array:
        factors = np.full(_positive_count(n), 1 / self.lam)
        factors[0] = 1.0
        return factors


@dataclass(frozen=True)
class Sobolev(Metric):
    """H1: ``<h, k> = mean(h k) + lam mean(h' k')``. Text: ``sobolev:lam=0.01,boundary=periodic``.

    The gradient solves ``g~ - lam g~'' = g``, discretely ``(I + lam A) g~ = g`` with A = D^T D and
    D the forward difference over spacing 1/n. It always smooths: mode k is divided by
    ``1 + lam mu_k``. lam -> 0 is the identity.

    Args:
        lam: dimensionless (the channel axis has length 1), positive and finite.
        boundary: ``"free"`` (g~' = 0 at both ends, the natural condition) or ``"periodic"``.

    Raises:
        TypeError, ValueError: lam is not a positive finite number, or boundary is unknown.

    >>> Sobolev(0.01).spectrum(2).round(4)
    array([1.    , 0.9259])
    """

    lam: float
    boundary: Boundary = "free"
    family: ClassVar[str] = "sobolev"

    def __post_init__(self) -> None:
        _store_lam(self)
        _check_boundary(self.boundary)

    def inner_product(self, h: Array, k: Array) -> Array:
        return np.mean(h * k, axis=0) + self.lam * _mean_slope_product(h, k, self.boundary)

    def spectrum(self, n: int) -> Array:
        with np.errstate(over="ignore"):  # the factor of such a mode is 0 to rounding
            return 1 / (1 + self.lam * eigenvalues(n, self.boundary))


@dataclass(frozen=True)
class MeanSobolev(Metric):
    """``<h, k> = mean(h) mean(k) + lam mean(h' k')``. Text: ``mean-sobolev:lam=0.05``.

    The gradient solves ``-lam g~'' = g - mean(g)`` with ``mean(g~) = mean(g)``, discretely
    ``g~ = mean(g) + (lam A)^+ g``. Mode k > 0 is divided by ``lam mu_k``: damped where that exceeds
    1, amplified where it does not. No lam makes it the identity (for n > 2).

    Args:
        lam: dimensionless (the channel axis has length 1), positive and finite.
        boundary: ``"free"`` (g~' = 0 at both ends, the natural condition) or ``"periodic"``.

    Raises:
        TypeError, ValueError: lam is not a positive finite number, or boundary is unknown.

    >>> MeanSobolev(0.05).spectrum(2)
    array([1. , 2.5])
    """

    lam: float
    boundary: Boundary = "free"
    family: ClassVar[str] = "mean-sobolev"

    def __post_init__(self) -> None:
        _store_lam(self)
        _check_boundary(self.boundary)

    def inner_product(self, h: Array, k: Array) -> Array:
        means = h.mean(axis=0) * k.mean(axis=0)
        return means + self.lam * _mean_slope_product(h, k, self.boundary)

    def spectrum(self, n: int) -> Array:
        mu = eigenvalues(n, self.boundary)
        with np.errstate(over="ignore"):  # the factor of such a mode is 0 to rounding
            return np.concatenate([[1.0], 1 / self.lam / mu[1:]])


FAMILIES: dict[str, type[Metric]] = {m.family: m for m in (L2, ReweightedL2, Sobolev, MeanSobolev)}


def parse_metric(text: str) -> Metric:
    """The metric that `text` names; ``parse_metric(str(metric)) == metric`` for every metric.

    The grammar is ``family`` or ``family:key=value,key=value``, with family one of ``l2``,
    ``reweighted``, ``sobolev``, ``mean-sobolev``; white space around the parts is ignored.

    Raises:
        TypeError: text is not a string.
        ValueError: unknown family or key, a missing or malformed value.

    >>> parse_metric("sobolev:lam=0.01,boundary=periodic")
    Sobolev(lam=0.01, boundary='periodic')
    """
    if not isinstance(text, str):
        raise TypeError(f"a metric's text is a str, got {type(text).__name__}: {text!r}")
    name, _, arguments = (part.strip() for part in text.partition(":"))
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown metric {text!r}: {hint}known are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    known = {f.name: f for f in fields(family)}
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in arguments.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in known or key in values:
            reason = "is given twice" if key in values else "is not key=value with a key of this metric"
            takes = ", ".join(known) or "no arguments"
            hint = "" if key in values else _argument_meant(key, value, known.keys() - values)
            raise ValueError(f"metric {text!r}: {item!r} {reason}; {hint}{name} takes {takes}")
        values[key] = _number(text, value) if key == "lam" else value
    if "lam" in known and "lam" not in values:
        raise ValueError(f"metric {text!r} needs lam, for example '{name}:lam={_example(family)}'")
    return family(**values)


def _argument_meant(key: str, value: str, known: Iterable[str]) -> str:
    """The question whether lam, or a key of similar spelling, was meant; empty where neither is likely."""
    if not value and "lam" in known and re.fullmatch(r"[\d.]+(e[+-]?\d+)?", key):
        key, value = "lam", key
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}={value}? " if close and value else ""


def as_metric(metric: Metric | str) -> Metric:
    """A metric given as itself or as its text.

    Raises:
        TypeError: neither a `Metric` nor a string.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return parse_metric(metric)
    raise TypeError(
        f"expected a metric or its text, such as cdgrad.ReweightedL2(3) or 'reweighted:lam=3', "
        f"got {type(metric).__name__}: {metric!r}"
    )


def lam_of(metric: Metric) -> float | None:
    """The metric's lam; None where it has none."""
    return getattr(metric, "lam", None)


def is_periodic(metric: Metric) -> bool:
    """Whether the metric has a periodic boundary condition."""
    return getattr(metric, "boundary", "free") == "periodic"


def differ_in_lam_at_most(metric: Metric, other: Metric) -> bool:
    """Whether two metrics are of one family and boundary condition."""
    return type(metric) is type(other) and is_periodic(metric) == is_periodic(other)


def with_lam(metric: Metric, lam: float) -> Metric:
    """The metric with another lam.

    Raises:
        ValueError, TypeError: the metric has no lam, or `lam` is not a positive finite number.
    """
    if lam_of(metric) is None:
        raise ValueError(f"metric {metric} has no lam")
    changed: Any = replace  # the base class does not declare the field
    return changed(metric, lam=lam)


def eigenvalues(n: int, boundary: Boundary) -> Array:
    """mu_k of A = D^T D, k = 0..n-1: 4 n^2 sin^2(pi k / 2n) if free, 4 n^2 sin^2(pi k / n) if periodic."""
    n = _positive_count(n)
    period = 2 * n if boundary == "free" else n
    return 4.0 * n**2 * np.sin(np.pi * np.arange(n) / period) ** 2


def _mean_slope_product(h: Array, k: Array, boundary: Boundary) -> Array:
    """mean(h' k'): forward differences over spacing 1/n, their products summed times 1/n."""
    n = len(h)
    if boundary == "periodic":
        slope_h, slope_k = n * (np.roll(h, -1, axis=0) - h), n * (np.roll(k, -1, axis=0) - k)
    else:
        slope_h, slope_k = n * np.diff(h, axis=0), n * np.diff(k, axis=0)
    return np.sum(slope_h * slope_k, axis=0) / n


def _example(family: type[Metric]) -> str:
    """A lam for messages: the one of the documentation, because 0.1 would lengthen a re-weighted gradient."""
    examples: dict[type[Metric], str] = {ReweightedL2: "3", Sobolev: "0.01", MeanSobolev: "0.05"}
    return examples.get(family, "0.1")


def _store_lam(metric: ReweightedL2 | Sobolev | MeanSobolev) -> None:
    """Check lam and store it as a float, so that equal metrics compare, hash and print equal."""
    lam: object = metric.lam
    example = f"{type(metric).__name__}({_example(type(metric))})"
    if isinstance(lam, bool) or not isinstance(lam, numbers.Real):
        raise TypeError(
            f"lam must be a number, got {type(lam).__name__}: {lam!r}; write for example {example}"
        )
    try:
        value = float(lam)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value > 0):
        remedy = "; for the ordinary gradient use L2()" if value == 0 else f"; for example {example}"
        raise ValueError(f"lam must be positive and finite, got {lam!r:.60}{remedy}")
    object.__setattr__(metric, "lam", value)


def _check_boundary(boundary: str) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be 'free' or 'periodic', got {boundary!r}")


def _positive_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise ValueError(f"the number of channels must be a positive integer, got {n!r}")
    return int(n)  # the square of one of numpy's could overflow


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"metric {text!r}: lam must be a number, got {value!r}") from None


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else repr(value).removesuffix(".0")

"""One metric or several by parameter names, and how they change with the step. Values and functions only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from itertools import islice

from cdgrad.metrics import L2, Metric, as_metric, lam_of, with_lam
from cdgrad.name_patterns import matched_names, refuse_idle_pattern
from cdgrad.selection import Selection

Metrics = Metric | Mapping[str, Metric]
"""A metric, or metrics by shell patterns of parameter names."""
Schedule = Callable[[int], float | Metric | str | Mapping[str, Metric | str]]


def as_metrics(metrics: Metric | str | Mapping[str, Metric | str]) -> Metrics:
    """A metric, or a dict of them, of metrics and their texts."""
    if isinstance(metrics, Mapping):
        if not metrics:
            raise ValueError("expected at least one pattern with a metric, got an empty mapping")
        return {pattern: as_metric(metric) for pattern, metric in metrics.items()}
    return as_metric(metrics)


def text_of(metrics: Metrics) -> str | dict[str, str]:
    """What `as_metrics` reads back."""
    if isinstance(metrics, Mapping):
        return {pattern: str(metric) for pattern, metric in metrics.items()}
    return str(metrics)


def metric_of(metrics: Metrics, selection: Selection) -> list[Metric]:
    """The metric of each target: that of the first pattern that matches its name, else L2.

    Raises:
        ValueError: a pattern matches no parameter, or none that can be processed, or none that a wider
            pattern before it leaves.
    """
    if not isinstance(metrics, Mapping):
        return [metrics] * len(selection.targets)
    axes: dict[str, tuple[int, int] | str] = {t.name: (t.dim, t.groups) for t in selection.targets}
    axes |= {skipped.name: skipped.reason for skipped in selection.skipped}
    matches = matched_names([*metrics], [*axes], "metric") if selection.targets else {}
    for index, (pattern, names) in enumerate(matches.items()):
        refuse_idle_pattern("metric", pattern, {name: axes[name] for name in names})
        for wider, more in islice(matches.items(), index):
            if {*names} < {*more}:
                raise ValueError(
                    f"metric pattern {pattern!r} has no effect after {wider!r}, which matches all of its "
                    "parameters: the first pattern that matches holds; write the narrower one first"
                )
    return [
        next((m for pattern, m in metrics.items() if fnmatchcase(target.name, pattern)), L2())
        for target in selection.targets
    ]


def scheduled(schedule: Schedule, step: int, present: Metrics) -> Metrics:
    """What a schedule gives for a step; a number replaces the lam of the present metrics.

    Raises:
        TypeError: not a function, or one that returns neither a number nor metrics.
        ValueError: lam for a metric that has none, or out of range.
    """
    if not callable(schedule):
        raise TypeError(
            f"expected a function of the step, got {schedule!r}; for a constant metric, set handle.metric"
        )
    value = schedule(step)
    if isinstance(value, Metric | str | Mapping):
        return as_metrics(value)
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"the schedule returned {value!r} for step {step}; expected lam, a metric or its text, or "
            "metrics by patterns"
        ) from None
    if isinstance(present, Mapping):
        return {pattern: _with_lam(metric, value) for pattern, metric in present.items()}
    return _with_lam(present, value)


def _with_lam(metric: Metric, lam: float) -> Metric:
    if lam_of(metric) is None:
        raise ValueError(f"the schedule gave lam={lam!r}, and {metric} has no lam; let it return a metric")
    return with_lam(metric, lam)

"""Width as a mesh: the error over width after folding, nothing trained after."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from cdgrad.study.report.figures.drawing import Drawing
from cdgrad.study.statistics import paired as stats
from evidence.build import figures, tables
from evidence.build.loading import RECORDS

RECORD = RECORDS / "width.parquet"
WIDTHS = (1.0, 0.75, 0.5, 0.25)
CELLS = {
    "small-cnn-digits": "small CNN, digits",
    "resnet8-digits": "ResNet-8, digits",
    "resnet8-cifar10": "ResNet-8, CIFAR-10 (JPEG)",
    "small-cnn-cifar10": "small CNN, CIFAR-10 (JPEG)",
}
# An arm and how its channels are dropped.
ROWS = {
    ("ordinary", "smallest"): "ordinary gradient, smallest filters removed",
    ("ordinary", "merged"): "ordinary gradient, most alike filters merged",
    ("ordinary", "sorted"): "ordinary gradient, sorted and folded",
    ("ordinary", "fold"): "ordinary gradient, folded as it is",
    ("sobolev-0.1", "fold"): "Sobolev, lam n^2 = 0.1, folded",
    ("sobolev-1", "fold"): "Sobolev, lam n^2 = 1, folded",
    ("sobolev-10", "fold"): "Sobolev, lam n^2 = 10, folded",
    ("sobolev-100", "fold"): "Sobolev, lam n^2 = 100, folded",
    ("falling", "fold"): "Sobolev, lam n^2 from 100 to 0.1, folded",
    ("widths", "fold"): "ordinary gradient, random widths, folded",
    ("widths-sobolev-1", "fold"): "Sobolev, lam n^2 = 1, random widths, folded",
    ("widths-sobolev-10", "fold"): "Sobolev, lam n^2 = 10, random widths, folded",
}
SCRATCH = {1.0: "ordinary", 0.5: "scratch-0.5", 0.25: "scratch-0.25"}
AT_FULL, AT_HALF = 0.5, 1.5  # points: the bar for `cdgrad.resize`
Values = dict[tuple[str, str, str, float], dict[int, float]]


def section() -> tuple[dict[str, str], list[Drawing]]:
    """The table of errors over width, the figure, and which arms meet the bar."""
    parquet: Any = import_module("pyarrow.parquet")  # it ships no types
    record: list[dict[str, Any]] = [row for row in parquet.read_table(RECORD).to_pylist() if not row["trial"]]
    values, rates = _values(record), {(row["cell"], row["arm"]): row["rate"] for row in record}
    cells = {cell: name for cell, name in CELLS.items() if any(key[0] == cell for key in values)}
    lines: list[list[str]] = []
    met: dict[str, list[str]] = {}
    for cell, name in cells.items():
        for (arm, method), label in ROWS.items():
            if (cell, arm) in rates:
                errors = [_of(values, cell, arm, method, width) for width in WIDTHS]
                lines.append([name, label, f"{rates[cell, arm]:g}", *map(_shown, errors)])
                if arm != "ordinary" and _meets(values, cell, arm):
                    met.setdefault(label, []).append(name)
        scratch = [
            _of(values, cell, SCRATCH[width], "", width) if width in SCRATCH else [] for width in WIDTHS
        ]
        lines.append([name, "trained from scratch at that width", "", *map(_shown, scratch)])
    head = ["network and data", "arm", "learning rate", "full width", "3/4", "1/2", "1/4"]
    trainings = {(row["cell"], row["arm"], row["seed"]) for row in record}
    parts = {
        "width_table": tables.markdown(head, lines, right=2),
        "width_seeds": str(len({row["seed"] for row in record})),
        "width_trainings": str(len(trainings)),
        "width_cells": str(len(cells)),
        "width_missing": _missing(values, rates),
        "width_cost": _cost(record),
        "width_met": "; ".join(f"{label}: {', '.join(where)}" for label, where in met.items()) or "none",
        "width_above": "; ".join(
            f"{name}: {full.mean:+.1f} at full width (MDD {_detectable(full)}), {half.mean:+.1f} at half "
            f"(MDD {_detectable(half)})"
            for cell, name in cells.items()
            for full, half in [_above(values, cell, "widths-sobolev-1")]
        ),
    }
    return parts, figures.widths("width", _curves(values, cells), WIDTHS)


def _missing(values: Values, rates: dict[tuple[str, str], float]) -> str:
    """What was planned and not run, a line a combination of network and data."""
    arms = dict.fromkeys(arm for arm, _ in ROWS)
    labels = {arm: label.removesuffix(", folded") for (arm, _), label in ROWS.items()}
    lines: list[str] = []
    for cell, name in CELLS.items():
        names = [labels[arm] for arm in arms if (cell, arm) not in rates]
        names += [
            f"from scratch at {width:g} of the width"
            for width, arm in SCRATCH.items()
            if width < 1 and (cell, arm, "", width) not in values
        ]
        if names:
            lines.append(f"- {name}: {'; '.join(names) if len(names) < len(arms) else 'everything'}.")
    lines.append(
        "- Everywhere: twice the width; from scratch at 3/4 of it; DenseNet and MobileNetV2 (their laws are tested)."
    )
    return "\n".join(lines)


def _cost(record: Sequence[dict[str, Any]]) -> str:
    """The time of a training by the arms of full width over that of the ordinary gradient, the range."""
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    for row in record:
        seconds.setdefault((row["cell"], row["arm"]), {})[row["seed"]] = row["seconds"]
    mean = {key: float(np.mean([*by_seed.values()])) for key, by_seed in seconds.items()}
    ratios = [
        value / mean[cell, "ordinary"]
        for (cell, arm), value in mean.items()
        if arm != "ordinary" and "scratch" not in arm
    ]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def _values(record: Sequence[dict[str, Any]]) -> Values:
    """Errors by cell, arm, method and width, then by seed; statistics of batch norm estimated anew."""
    values: Values = {}
    for row in record:
        if row["width"] == 1 or row["reestimated"]:
            method = "" if row["width"] == 1 else row["method"]
            width = float(row["arm"].removeprefix("scratch-")) if "scratch" in row["arm"] else row["width"]
            values.setdefault((row["cell"], row["arm"], method, width), {})[row["seed"]] = row["error"]
    return values


def _of(values: Values, cell: str, arm: str, method: str, width: float) -> list[float]:
    by_seed = values.get((cell, arm, "" if width == 1 else method, width), {})
    return [by_seed[seed] for seed in sorted(by_seed)]


def _shown(errors: Sequence[float]) -> str:
    return f"{np.mean(errors):.1f} ({np.std(errors, ddof=1):.1f})" if errors else "not run"


def _meets(values: Values, cell: str, arm: str) -> bool:
    """Whether the means are within the bar."""
    full, half = _above(values, cell, arm)
    return full.mean <= AT_FULL and half.mean <= AT_HALF


def _detectable(c: stats.Comparison) -> str:
    return f"{stats.detectable_difference(c.pairs, c.sd):.1f}"


def _above(values: Values, cell: str, arm: str) -> tuple[stats.Comparison, stats.Comparison]:
    """Points above the ordinary gradient at full width, and above half the width from scratch at half."""
    return (
        stats.compare(_of(values, cell, arm, "fold", 1.0), _of(values, cell, "ordinary", "", 1.0)),
        stats.compare(_of(values, cell, arm, "fold", 0.5), _of(values, cell, "scratch-0.5", "", 0.5)),
    )


def _curves(values: Values, cells: dict[str, str]) -> dict[str, dict[str, list[list[float]]]]:
    """By cell and label, the errors of every seed at each width of `WIDTHS`."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for cell, name in cells.items():
        ordinary = [
            min(
                (_of(values, cell, "ordinary", method, width) for _, method in list(ROWS)[:4]),
                key=lambda errors: float(np.mean(errors)),
            )
            for width in WIDTHS
        ]
        curves[name] = {"ordinary gradient, best of four ways": ordinary}
        for arm, label in {
            "sobolev-10": "Sobolev, lam n^2 = 10",
            "widths": "ordinary gradient, random widths",
            "widths-sobolev-1": "Sobolev, lam n^2 = 1, random widths",
        }.items():
            curves[name][label] = [_of(values, cell, arm, "fold", width) for width in WIDTHS]
        curves[name]["trained at that width"] = [
            _of(values, cell, SCRATCH[width], "", width) if width in SCRATCH else [] for width in WIDTHS
        ]
    return curves

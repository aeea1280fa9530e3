"""How the settings of the main section were searched: its ranges, its networks, and what lies near an end of a range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cdgrad.study import models
from cdgrad.study.callables import modules_beside
from cdgrad.study.report.words import enumerated
from cdgrad.study.spec.space import Dimension
from cdgrad.study.statistics.results import Results
from evidence.build import tables
from evidence.build.claims import METHODS
from evidence.build.loading import CLAIMS, STUDIES, studies

RATE, LAM = "optimizer.lr", "lam"
NEAR = 0.1  # of the logarithm of a range
_HARDLY_TRAINED = 80  # percent, where naming one class makes 90


def section() -> dict[str, str]:
    """The parts of the page."""
    results = studies(CLAIMS)
    spec = results[0].spec
    task, _, schedule, _ = spec.setting(next(iter(spec.cells)), spec.baseline).tables()
    steps = math.ceil(int(task.train) / schedule.batch) * schedule.epochs
    return {
        "ranges_training": f"{schedule.epochs} epochs of batches of {schedule.batch} ({steps} steps)",
        "ranges_weights": _weights(results),
        "ranges_rates": enumerated(_ranges(results, spec.baseline, RATE)),
        "ranges_lam": ", ".join(
            f"{METHODS[arm]} {text}" for arm in METHODS for text in _ranges(results, arm, LAM)
        ),
        "ranges_table": _table(results),
        "ranges_photos": _photographs(),
        "ranges_tried": _tried(),
    }


def near_an_end(value: float, within: Dimension) -> str:
    """``"low"`` or ``"high"`` where a value lies within a tenth of a logarithmic range of its end, or empty."""
    place = math.log(value / within.low) / math.log(within.high / within.low)
    return "low" if place < NEAR else "high" if place > 1 - NEAR else ""


def _ranges(results: Sequence[Results], arm: str, key: str) -> list[str]:
    """The distinct ranges of a key, each with the optimizers that it holds for where there are several."""
    optimizers: dict[str, list[str]] = {}
    for study in results:
        assert study.spec.tuning is not None
        within = study.spec.tuning.of(arm)[key]
        names = optimizers.setdefault(f"{within.low:g} to {within.high:g}", [])
        for cell in study.spec.cells:
            name = tables.cell_name(cell).rpartition(", ")[2]
            names += [name] if name not in names else []
    several = len(optimizers) > 1
    return [f"{text} for {enumerated(names)}" if several else text for text, names in optimizers.items()]


def _weights(results: Sequence[Results]) -> str:
    """Each network's number of parameters."""
    counts: dict[str, int] = {}
    for study in results:
        for cell in study.spec.cells:
            _, model, *_ = study.spec.setting(cell, study.spec.baseline).tables()
            with modules_beside(str(STUDIES)):
                network = models.build(model.name, (1, 8, 8), 10, model.arguments)
            name = tables.cell_name(cell).rpartition(", ")[0]
            counts[name] = sum(parameter.numel() for parameter in network.parameters())
    return enumerated([f"{count:,} ({name})" for name, count in counts.items()])


def _table(results: Sequence[Results]) -> str:
    """An arm a row: the searches whose choice is near an end of its range."""
    lines: list[list[str]] = []
    for arm, name in {"none": "ordinary gradient", **METHODS}.items():
        cells = [(study, cell) for study in results for cell in study.spec.cells]
        found = {key: _near(cells, arm, key) for key in (RATE, LAM)}
        lines.append([name, str(len(cells)), found[RATE], "" if arm == "none" else found[LAM]])
    return tables.markdown(
        ["arm", "searches", "learning rate near an end", "lam near an end"], lines, right=4
    )


def _near(cells: Iterable[tuple[Results, str]], arm: str, key: str) -> str:
    """The cells whose chosen value lies near an end, each with that end."""
    found: list[str] = []
    for study, cell in cells:
        assert study.spec.tuning is not None
        within = study.spec.tuning.of(arm).get(key)
        end = near_an_end(float(study.values(cell, arm)[key]), within) if within else ""
        found += [f"{tables.cell_name(cell)} ({end})"] if end else []
    return "; ".join(found) or "none"


def _tried() -> str:
    """The learning rates that the few trials on photographs tried under SGD, by the baseline and by the metrics."""
    (study,) = studies(["cifar10-jpeg"])
    assert study.spec.tuning is not None
    ends: list[str] = []
    for arm in ("none", "reweighted"):
        rates = [point[RATE] for point in study.spec.tuning.points(arm)]
        ends.append(f"{min(rates):.2g} to {max(rates):.2g}")
    return f"under SGD {ends[1]} in place of {ends[0]}"


def _photographs() -> str:
    """What the longer search on photographs had to choose from; empty without the record."""
    for study in studies(["cifar10-tuned"]):
        (cell,) = study.spec.cells
        errors: dict[tuple[str, int], list[float]] = {}
        for run in study.runs:
            if run.trial is not None and run.error is not None:
                errors.setdefault((run.arm, run.trial), []).append(run.error)
        lost = sum(float(np.mean(values)) > _HARDLY_TRAINED for values in errors.values())
        low = [arm for arm in study.spec.arms if "low" in _near([(study, cell)], arm, RATE)]
        return (
            f"Of the {len(errors)} settings that these trials tried, {lost} ended above {_HARDLY_TRAINED} % validation errors "
            f"(chance is 90 %), and {len(low)} of {len(study.spec.arms)}\narms chose a rate near the low end of the range: a better one "
            "may lie below it, and lam was hardly searched."
        )
    return ""

"""What a GPU's record should show: each target as a number with its bound, from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cdgrad.bench.candidates import FLOOR, METRICS
from cdgrad.bench.gpu.operator import PLAIN
from cdgrad.bench.gpu.study_loop import MPS
from cdgrad.bench.records import GpuRecord, Target
from cdgrad.metrics import Sobolev

_SOBOLEV = {str(metric) for metric in METRICS if isinstance(metric, Sobolev)}
_Rows = Callable[[str], dict[str, Any]]


def targets(record: GpuRecord) -> list[Target]:
    """Every target, measured or not; those of a rehearsal say nothing."""

    def rows(section: str) -> dict[str, Any]:
        return record["sections"][section]["rows"] if section in record["sections"] else {}

    return [
        *_operator(rows),
        *_training(rows),
        *_study(rows),
        *_jax(rows),
        _most("the benchmark, s", [record["seconds"]], 120),
    ]


def _operator(rows: _Rows) -> Iterator[Target]:
    parity = {name: row["error"] for name, row in rows("parity").items() if name.endswith(" float32")}
    of_all = {name.partition(":")[0] for name in parity} >= {metric.family for metric in METRICS}
    errors = list(parity.values()) if of_all else list[float]()
    yield _most("error in float32, relative in norm", errors, 1e-6)
    checks = {name: row["difference"] for name, row in rows("checks").items()}
    runs = [checks.pop(name) for name in [*checks] if "study" in name]
    yield _most("weights of attached and captured steps against those by hand", checks.values(), 1e-4)
    yield _most("weights of a study's run as graphs against the same at once", runs[:1], 1e-3)
    by_metric = _over_floor(rows, "resnet50 float32")
    linear = [ratio for name, ratio in by_metric.items() if name not in _SOBOLEV]
    yield _most("ResNet-50, float32, re-weighted and mean-weighted, over the floor", linear, 1.0)
    sobolev = [ratio for name, ratio in by_metric.items() if name in _SOBOLEV]
    yield _most("ResNet-50, float32, Sobolev, over the floor", sobolev, 1.3)
    half = _over_floor(rows, "resnet50 bfloat16").values()
    yield _most("ResNet-50, bfloat16, any metric, over the floor", half, 1.6)
    plain = _over_floor(rows, f"resnet50 float32, {PLAIN}").values()
    yield _most("ResNet-50, float32, any metric without Triton, over the floor", plain, 10)
    calls = [
        row["optimizer.step, attached"] - row["optimizer.step, not attached"] for row in rows("host").values()
    ]
    yield _most("host time of a step with 53 gradients, microseconds", calls, 40)
    compiled = [
        seconds for row in rows("compilation").values() for name, seconds in row.items() if name != "seconds"
    ]
    yield _most("compilation at first use, one metric, s", compiled, 10)
    replays = [row["difference"] for row in rows("graph").values()]
    yield _most("replays of a graph against the same without, relative in norm", replays, 1e-6)


def _over_floor(rows: _Rows, case: str) -> dict[str, float]:
    times = rows("floor").get(case, {"times": {}})["times"]
    return {name: row["over_floor"] for name, row in times.items() if name != FLOOR}


def _training(rows: _Rows) -> Iterator[Target]:
    for kind in ("eager", "compiled", "graph"):
        row = rows("training steps").get(kind, {})
        longer = [each["longer_percent"] for each in row.values()]
        yield _most(f"a training step of ResNet-18, {kind}, any metric, % longer", longer, 1.0)


def _study(rows: _Rows) -> Iterator[Target]:
    loops = rows("study loop")
    for network, batch in (("resnet18", 128), ("resnet20", 512)):
        bare = loops.get(f"{network}, batch {batch}, by hand", {}).get("graph, images a second")
        for metric, of in (("none", "without a metric"), ("sobolev:lam=0.01", "Sobolev")):
            row = loops.get(f"{network}, batch {batch}, study, {metric}")
            ratio = [row["images a second"] / bare] if row and bare else []
            yield _least(f"the study's loop over a bare one, {network}, {of}", ratio, 0.95)
    starts = [row["seconds of the start"] for name, row in loops.items() if "study" in name]
    yield _most("start of a run after the first, s", starts[1:], 3)
    # Of the same epochs; a record of November 2026 has only the loop's, which are longer.
    alone = rows("workers").get("1", loops.get("resnet20, batch 512, study, none", {}))
    one = alone.get("images a second")
    for name, how in (("4", ""), (f"4, {MPS}", f" {MPS}")):
        several = rows("workers").get(name, {}).get("images a second")
        ratio = [several / one] if several and one else []
        yield _least(f"four workers{how} over one, resnet20, images a second", ratio, 1.0)


def _jax(rows: _Rows) -> Iterator[Target]:
    ratios = {name: row["over_floor"] for name, row in rows("jax").items() if name != "multiply"}
    linear = [ratio for name, ratio in ratios.items() if name.startswith("reweighted")]
    yield _most("JAX, re-weighted, over the floor", linear, 2)
    others = [ratio for name, ratio in ratios.items() if not name.startswith("reweighted")]
    yield _most("JAX, Sobolev and mean-weighted, over the floor", others, 4)


def _most(name: str, values: Iterable[float], bound: float) -> Target:
    """The largest of the values should be at most the bound."""
    value = max(values, default=None)
    holds = None if value is None else value <= bound
    return {"name": name, "value": value, "bound": bound, "at_most": True, "holds": holds}


def _least(name: str, values: Iterable[float], bound: float) -> Target:
    """The smallest of the values should be at least the bound."""
    value = min(values, default=None)
    holds = None if value is None else value >= bound
    return {"name": name, "value": value, "bound": bound, "at_most": False, "holds": holds}

"""The tables and sentences of the benchmarks' records: cost, accuracy, optimizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from cdgrad.bench.candidates import FLOOR
from cdgrad.bench.page import gpu_tables, tables
from cdgrad.bench.records import GpuRecord, Record
from cdgrad.tables import markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str) -> dict[str, Any]:
    """A committed record of the benchmarks."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cost() -> str:
    """Every table of the cost record."""
    return tables(cast(Record, record("cost")))


def gpu() -> str:
    """Every table of the GPU's record."""
    return gpu_tables(cast(GpuRecord, record("gpu")))


_FAMILIES = {"reweighted": "re-weighted", "mean-sobolev": "mean-weighted Sobolev", "sobolev": "Sobolev"}


def gpu_ratios() -> dict[str, dict[str, float]]:
    """By network and dtype, and by family, the operator's time on the GPU over the floor.

    Of a family the larger of the times with free and with periodic boundaries.
    """
    rows = record("gpu")["sections"]["floor"]["rows"]
    return {
        name: {
            family: max(
                of["over_floor"] for metric, of in row["times"].items() if metric.startswith(f"{family}:")
            )
            for family in _FAMILIES
        }
        for name, row in rows.items()
    }


def gpu_floor() -> str:
    """The operator's time on the GPU over the floor, as a table."""
    rows = record("gpu")["sections"]["floor"]["rows"]
    lines = [
        [
            name,
            f"{1e3 * rows[name]['times'][FLOOR]['ms']:.0f}",
            *(f"{ratios[family]:.2f}" for family in _FAMILIES),
        ]
        for name, ratios in gpu_ratios().items()
    ]
    return "\n".join(markdown(("", "floor, microseconds", *_FAMILIES.values()), lines, "lrrrr")) + "\n"


def gpu_steps(way: str = "graph") -> dict[str, float]:
    """By metric, how much longer a training step takes, in percent: as one CUDA graph, ``eager`` or ``compiled``."""
    ways = record("gpu")["sections"]["training steps"]["rows"][way]
    return {name: row["longer_percent"] for name, row in ways.items() if name != "without"}


def cost_sentence() -> str:
    """The cost in percent of a training step, and over the floor."""
    device, longer = record("gpu")["machine"]["device"], gpu_steps().values()
    one_by_one = [*gpu_steps("eager").values(), *gpu_steps("compiled").values()]
    on_gpu, half = (gpu_ratios()[f"resnet50 {dtype}"].values() for dtype in ("float32", "bfloat16"))
    cost = record("cost")
    shares = [100 * row["operator_over_step"] for row in cost["steps"] if row["operator_over_step"]]
    on_cpu = [
        row["cold_over_floor"]
        for name in ("resnet18-imagenet", "resnet50")
        for metric, backend in cost["networks"][name]["chosen"].items()
        for row in cost["networks"][name]["rows"]
        if row["name"] == f"{metric} | {backend}"
    ]
    return (
        f"**What does it cost?** On a GPU ({device}) a training step of ResNet-18 in bfloat16 takes\n"
        f"{min(longer):.1f} to {max(longer):.1f} % longer as one CUDA graph, and {min(one_by_one):.1f} to "
        f"{max(one_by_one):.0f} % longer launched one by one, on a noisy host.\n"
        f"The operator takes {min(on_gpu):.2f} to {max(on_gpu):.2f} times as long as reading and writing the gradients of ResNet-50\n"
        f"once in float32, {min(half):.2f} to {max(half):.2f} times in bfloat16. On a CPU it takes {min(shares):.2f} to "
        f"{max(shares):.2f} % of a training\nstep, {min(on_cpu):.1f} to {max(on_cpu):.1f} times as long as reading and writing "
        "once. It adds no optimizer state.\n"
    )


def accuracy() -> str:
    """The float32 error of each backend and metric."""
    rows = record("accuracy")["rows"]
    kinds = list(dict.fromkeys(row["columns"] for row in rows))
    errors = {(r["backend"], r["metric"], r["columns"]): f"{r['error']:.1e}" for r in rows}
    lines = [
        [backend, metric, *(errors[backend, metric, kind] for kind in kinds)]
        for backend, metric in dict.fromkeys((r["backend"], r["metric"]) for r in rows)
    ]
    return "\n".join(markdown(("backend", "metric", *kinds), lines, "l" * (2 + len(kinds)))) + "\n"


def optimizers() -> str:
    """Outcomes by optimizer; variants of one optimizer with equal outcomes share a row."""
    measured = record("optimizers")
    rows: dict[tuple[str, bool, str], list[str]] = {}
    for row in measured["outcomes"]:
        rows.setdefault((row["name"], row["works"], row["why"]), []).append(row["variant"])
    works = sum(row["works"] for row in measured["outcomes"])
    lines = [
        f"torch {measured['torch']}, pytorch_optimizer {measured['pytorch_optimizer']}, on a CPU: {works} variants work, "
        f"{len(measured['outcomes']) - works} are refused.",
        "",
        *markdown(
            ("optimizer", "variant", "outcome", "why"),
            [
                (name, ", ".join(variants), "works" if ok else "refused", why)
                for (name, ok, why), variants in rows.items()
            ],
            "llll",
        ),
    ]
    return "\n".join(lines) + "\n"


def optimizer_count() -> str:
    """The row of the README's table of pages."""
    names = {row["name"] for row in record("optimizers")["outcomes"]}
    return f"cdgrad is tested with [{len(names)} optimizers](docs/optimizers.md) of torch and pytorch_optimizer.\n"

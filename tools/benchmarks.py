"""The tables and sentences of the benchmarks' records: cost, accuracy, optimizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

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
    """The tables of the GPU's record, where there is one."""
    if not (RESULTS / "gpu.json").exists():
        return (
            "The present Triton kernels have not been timed yet. `cdgrad bench --device cuda` times them.\n"
        )
    return gpu_tables(cast(GpuRecord, record("gpu")))


def _gpu_sentence() -> str:
    if not (RESULTS / "gpu.json").exists():
        return "The present GPU kernels have not been timed yet; `cdgrad bench --device cuda` times them.\n"
    measured = record("gpu")
    steps = measured["sections"]["training steps"]["rows"]
    longer = [
        row["longer_percent"] for way in steps.values() for name, row in way.items() if name != "without"
    ]
    return f"On {measured['machine']['device']} a training step of ResNet-18 takes at most {max(longer):.1f} % longer.\n"


def cost_sentence() -> str:
    """The cost in percent of a training step, and over the floor."""
    cost = record("cost")
    shares = [100 * row["operator_over_step"] for row in cost["steps"] if row["operator_over_step"]]
    ratios = [
        row["cold_over_floor"]
        for name in ("resnet18-imagenet", "resnet50")
        for metric, backend in cost["networks"][name]["chosen"].items()
        for row in cost["networks"][name]["rows"]
        if row["name"] == f"{metric} | {backend}"
    ]
    return (
        f"**What does it cost?** On a CPU the operator takes {min(shares):.2f} to {max(shares):.2f} % of a training step of ResNet-18,\n"
        f"{min(ratios):.1f} to {max(ratios):.1f} times as long as reading and writing the gradient once. It adds no optimizer state.\n"
        + _gpu_sentence()
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

"""The record of a benchmark as tables in Markdown."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def tables(record: Record) -> str:
    """Every number of the record that a reader compares."""
    parts = [_machine(record["machine"])]
    parts += [_network(name, network) for name, network in record["networks"].items()]
    if record["steps"]:
        parts.append(_steps(record["steps"]))
    if record["jax"]:
        parts.append(_jax(record["jax"]))
    return "\n\n".join(parts) + "\n"


def _machine(machine: Record) -> str:
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    software = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numba", "numpy"))
    return f"{machine['processor']}, {cores}; {software}. Cold is {machine['cold']}."


def _network(name: str, network: Record) -> str:
    head = f"**{name}**: {network['tensors']} tensors, {network['bytes'] / 1e6:.1f} MB"
    lines = [
        "| | cold, ms | cold / floor | warm, ms | warm / floor | GB/s cold | extra MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    chosen = {f"{metric} | {backend}" for metric, backend in network["chosen"].items()}
    for row in network["rows"]:
        label = row["name"].replace(" | ", ", ")
        label = f"**{label}**" if row["name"] in chosen else label
        extra = "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        lines.append(
            f"| {label} | {1e3 * row['cold']:.2f} | {row['cold_over_floor']:.2f} | {1e3 * row['warm']:.2f} "
            f"| {row['warm_over_floor']:.2f} | {row['bytes_per_second'] / 1e9:.1f} | {extra} |"
        )
    return "\n".join([head, "", *lines])


def _steps(steps: list[Record]) -> str:
    lines = [
        "**A training step**: ResNet-18, 32 x 32, batch 128, SGD",
        "",
        "| | step, ms | over plain | operator, ms | operator / step |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in steps:
        operator = ("", "")
        if row["operator"] is not None:
            operator = (f"{1e3 * row['operator']:.2f}", f"{100 * row['operator_over_step']:.2f} %")
        lines.append(
            f"| {row['name']} | {1e3 * row['seconds']:.0f} | {row['over_plain']:.3f} "
            f"| {' | '.join(operator)} |"
        )
    return "\n".join(lines)


def _jax(rows: list[Record]) -> str:
    lines = [
        "**In JAX**: one 3 x 3 kernel with as many input as output channels, under `jit`, cold",
        "",
        "| | channels | cold, ms | cold / floor |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['channels']} | {1e3 * row['cold']:.2f} | {row['cold_over_floor']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)

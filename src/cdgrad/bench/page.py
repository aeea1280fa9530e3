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
    return f"{machine['cpu']}, {cores}; {software}. Cold is {machine['cold']}."


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


def gpu_tables(record: Record) -> str:
    """Every number of the record of ``cdgrad bench --device cuda``."""
    machine, sections = record["machine"], record["sections"]
    software = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "triton") if machine[name])
    parts = [f"{machine['device']}, {machine['date']}; {software}."]
    parts += [_gpu_section(name, section) for name, section in sections.items() if section["rows"]]
    missing = [f"{name}: {item}" for name, section in sections.items() for item in section["skipped"]]
    failed = [f"{name}: {item}: {why}" for name, s in sections.items() for item, why in s["errors"].items()]
    if missing:
        parts.append(
            "Not measured, because the time was over or something is missing: " + "; ".join(missing) + "."
        )
    if failed:
        parts.append("Not measured, because it failed: " + "; ".join(failed) + ".")
    return "\n\n".join(parts) + "\n"


def _gpu_section(name: str, section: Record) -> str:
    """A table of the section: a row per item, or per item and candidate where an item has several."""
    rows = {
        (item, inner): values
        for item, row in section["rows"].items()
        for inner, values in _candidates(row).items()
    }
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    lines = [f"**{name}**", "", f"| | | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
    for (item, inner), values in rows.items():
        cells = [_number(values[column]) if column in values else "" for column in columns]
        lines.append(f"| {item} | {inner} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _candidates(row: Record) -> dict[str, Record]:
    nested = row.get("times", row)
    return nested if all(isinstance(each, dict) for each in nested.values()) else {"": nested}


def _number(value: float) -> str:
    return (
        f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    )

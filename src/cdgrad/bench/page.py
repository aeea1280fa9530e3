"""The record of a benchmark as tables in Markdown."""

from __future__ import annotations

from typing import Any, cast

from cdgrad.bench.records import GpuRecord, JaxRow, Machine, Network, Record, Section, Step, Target
from cdgrad.tables import markdown


def tables(record: Record) -> str:
    """Every number of the record that a reader compares."""
    parts = [_machine(record["machine"])]
    parts += [_network(name, network) for name, network in record["networks"].items()]
    if record["steps"]:
        parts.append(_steps(record["steps"]))
    if record["jax"]:
        parts.append(_jax(record["jax"]))
    return "\n\n".join(parts) + "\n"


def _machine(machine: Machine) -> str:
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    software = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numba", "numpy"))
    return f"{machine['cpu']}, {cores}; {software}. Cold is {machine['cold']}."


def _network(name: str, network: Network) -> str:
    head = f"**{name}**: {network['tensors']} tensors, {network['bytes'] / 1e6:.1f} MB"
    titles = ("", "cold, ms", "cold / floor", "warm, ms", "warm / floor", "GB/s cold", "extra MB")
    rows: list[list[str]] = []
    chosen = {f"{metric} | {backend}" for metric, backend in network["chosen"].items()}
    for row in network["rows"]:
        label = row["name"].replace(" | ", ", ")
        label = f"`{label}`" if label.startswith("torch.") else label  # its underscores are no emphasis
        label = f"**{label}**" if row["name"] in chosen else label
        extra = "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        numbers = (1e3 * row["cold"], row["cold_over_floor"], 1e3 * row["warm"], row["warm_over_floor"])
        texts = [f"{number:.2f}" for number in numbers]
        rows.append([label, *texts, f"{row['bytes_per_second'] / 1e9:.1f}", extra])
    return "\n".join([head, "", *markdown(titles, rows, "lrrrrrr")])


def _steps(steps: list[Step]) -> str:
    head = "**A training step**: ResNet-18, 32 x 32, batch 128, SGD"
    titles = ("", "step, ms", "over plain", "operator, ms", "operator / step")
    rows: list[list[str]] = []
    for row in steps:
        operator = ("", "")
        if row["operator"] is not None and row["operator_over_step"] is not None:
            operator = (f"{1e3 * row['operator']:.2f}", f"{100 * row['operator_over_step']:.2f} %")
        rows.append([row["name"], f"{1e3 * row['seconds']:.0f}", f"{row['over_plain']:.3f}", *operator])
    return "\n".join([head, "", *markdown(titles, rows, "lrrrr")])


def _jax(records: list[JaxRow]) -> str:
    head = "**In JAX**: one 3 x 3 kernel with as many input as output channels, under `jit`, cold"
    rows = [
        (row["name"], str(row["channels"]), f"{1e3 * row['cold']:.2f}", f"{row['cold_over_floor']:.2f}")
        for row in records
    ]
    return "\n".join([head, "", *markdown(("", "channels", "cold, ms", "cold / floor"), rows, "lrrr")])


def gpu_tables(record: GpuRecord) -> str:
    """Every number of the record of ``cdgrad bench --device cuda``."""
    machine, sections = record["machine"], record["sections"]
    software = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "triton") if machine[name])
    parts = [f"{machine['device']}, {machine['date']}; {software}; {record['seconds']:.0f} s in all."]
    if record["rehearsal"]:
        parts.append("A rehearsal on tiny sizes: none of these numbers measures anything.")
    parts.append(_targets(record["targets"], rehearsal=record["rehearsal"]))
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


def _targets(targets: list[Target], *, rehearsal: bool) -> str:
    words = {True: "holds", False: "**missed**", None: "not measured"}
    if rehearsal:
        words = dict.fromkeys(words, "")
    rows = [
        (
            row["name"],
            "" if row["value"] is None else _number(row["value"]),
            f"{'at most' if row['at_most'] else 'at least'} {_number(row['bound'])}",
            words[row["holds"]],
        )
        for row in targets
    ]
    return "\n".join(["**targets**", "", *markdown(("", "value", "bound", ""), rows, "lrrl")])


_NOTES = {
    "compilation": "Seconds of the first call, beside other compilations; a gap: not compiled in time.",
    "training steps": "The lowest of interleaved rounds, since other work of the host only ever adds to one.",
}


def _gpu_section(name: str, section: Section) -> str:
    """A table of the section: a row per item, or per item and candidate where an item has several."""
    rows = {
        (item, inner): values
        for item, row in section["rows"].items()
        for inner, values in _candidates(row).items()
    }
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    cells = [
        [item, inner, *(_number(values[column]) if column in values else "" for column in columns)]
        for (item, inner), values in rows.items()
    ]
    align = "ll" + "r" * len(columns)
    head = f"**{name}**" + (f": {_NOTES[name]}" if name in _NOTES else "")
    return "\n".join([head, "", *markdown(("", "", *columns), cells, align)])


def _candidates(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    nested = row.get("times", row)
    several = all(isinstance(each, dict) for each in nested.values())
    return cast("dict[str, dict[str, float]]", nested if several else {"": nested})


def _number(value: float) -> str:
    return (
        f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    )

"""The records of the benchmarks as types: what is measured, written as JSON and shown as tables."""

from __future__ import annotations

from typing import Any, TypedDict


class Machine(TypedDict):
    """Where and with what the CPU was measured; `cold` says how caches were emptied."""

    cpu: str
    cores: int | None
    threads: int
    system: str
    python: str
    torch: str
    numba: str
    numpy: str
    cold: str


class Row(TypedDict):
    """Seconds of a candidate with cold and warm caches, and over the floor of the same rounds.

    `bytes_per_second` counts each element once in and once out; `extra_bytes` is None where it is unknown.
    """

    name: str
    cold: float
    warm: float
    cold_over_floor: float
    warm_over_floor: float
    bytes_per_second: float
    extra_bytes: int | None


class Network(TypedDict):
    """The candidates on one network's gradients; `chosen` has the backend of each metric."""

    tensors: int
    bytes: int
    chosen: dict[str, str]
    rows: list[Row]


class Step(TypedDict):
    """Seconds of a whole training step, and of the operator within it, None without one."""

    name: str
    seconds: float
    over_plain: float
    operator: float | None
    operator_over_step: float | None
    rounds: int


class JaxRow(TypedDict):
    """Seconds of a metric in JAX, and over the floor."""

    channels: int
    name: str
    cold: float
    cold_over_floor: float


class Record(TypedDict):
    """The record of ``cdgrad bench``."""

    machine: Machine
    networks: dict[str, Network]
    steps: list[Step]
    jax: list[JaxRow]


class Section(TypedDict):
    """A section of the GPU's record: numbers by item, items that were skipped or failed, and the time."""

    rows: dict[str, Any]
    skipped: list[str]
    errors: dict[str, str]
    seconds: float


class Target(TypedDict):
    """What a number should be at most, or at least; `holds` is None where it was not measured."""

    name: str
    value: float | None
    bound: float
    at_most: bool
    holds: bool | None


class GpuRecord(TypedDict):
    """The record of ``cdgrad bench --device cuda``."""

    machine: dict[str, Any]
    rehearsal: bool
    seconds: float
    targets: list[Target]
    sections: dict[str, Section]

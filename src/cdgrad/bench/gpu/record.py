"""The sections in order, each within its share of the time; the record is written after each item."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cdgrad.bench.gpu.setup import Setup, UnavailableError
from cdgrad.bench.records import GpuRecord, Section
from cdgrad.messages import named
from cdgrad.ops.triton import tables

SECONDS = 120.0
_GRACE = 5.0  # seconds after the end in which an item may still finish


def record(setup: Setup, seconds: float, write: Callable[[GpuRecord], None]) -> GpuRecord:
    """Measure all sections; an item that fails or exceeds the time does not affect the others.

    Args:
        setup: device and sizes.
        seconds: how long all sections may take, compilation included.
        write: called with the record after every item.
    """
    sections = _sections(setup)
    result: GpuRecord = {
        "machine": machine(setup),
        "rehearsal": setup.rehearsal,
        "seconds": 0.0,
        "sections": {},
    }
    if setup.rehearsal:
        # Triton's interpreter takes a second for a tile of the usual size.
        tables.TILES.update({size: tables.Tile(4, 2, 16, 2, 1) for size in tables.TILES})
    start, share = time.perf_counter(), 0.0
    timer = threading.Timer(seconds + _GRACE, _stop)
    timer.daemon = True
    if not setup.rehearsal:
        timer.start()
    whole = sum(part for _, part, _ in sections)
    for name, part, items in sections:
        share += part / whole
        setup.deadline = start + share * seconds
        section: Section = {"rows": {}, "skipped": [], "errors": {}, "seconds": 0.0}
        result["sections"][name] = section
        print(f"measuring {name}", file=sys.stderr, flush=True)
        _measure(setup, section, items, lambda: write(result))
        result["seconds"] = round(time.perf_counter() - start, 1)
        write(result)
    timer.cancel()
    return result


def _sections(setup: Setup) -> list[tuple[str, float, Callable[[Setup], dict[str, Any]]]]:
    """Name, share of the time in seconds of 120, and what gives the items."""
    from cdgrad.bench.gpu import compilation, jax_rows, operator, study_loop, training

    return [
        ("compilation", 30, compilation.items),
        ("parity", 8, operator.parity),
        ("floor", 25, operator.floor),
        ("host", 3, operator.host),
        ("graph", 4, training.graphs),
        ("training steps", 30, training.steps),
        ("study loop", 12, study_loop.items),
        ("jax", 8, jax_rows.items),
    ]


def _measure(
    setup: Setup, section: Section, items: Callable[[Setup], dict[str, Any]], write: Callable[[], None]
) -> None:
    start = time.perf_counter()
    try:
        todo = items(setup)
    except UnavailableError as error:
        todo = {}
        section["skipped"].append(str(error))
    except Exception as error:  # a section that cannot begin must not stop the others on a rented machine
        todo = {}
        section["errors"]["section"] = _line(error)
    for name, item in todo.items():
        if setup.over:
            section["skipped"].append(name)
            continue
        try:
            section["rows"][name] = item()
        except Exception as error:
            section["errors"][name] = _line(error)
        section["seconds"] = round(time.perf_counter() - start, 1)
        write()


def _line(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{named(error):.300} ({os.path.basename(where.filename)}:{where.lineno})"


def _stop() -> None:
    """End an item that does not check the clock, such as a compilation, on a rented machine."""
    print("cdgrad: the time is over; the record holds what was measured", file=sys.stderr, flush=True)
    os._exit(1)


def machine(setup: Setup) -> dict[str, Any]:
    """Where and with what this runs."""
    import torch

    facts: dict[str, Any] = {
        "device": "cpu",
        "system": platform.system(),
        "python": platform.python_version(),
    }
    if setup.device.type == "cuda":
        cuda: Any = torch.cuda
        properties = cuda.get_device_properties(setup.device)
        facts |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }
    facts["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    for package in ("torch", "triton", "jax", "cdgrad"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts

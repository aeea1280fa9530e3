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

from cdgrad.bench.gpu import processes
from cdgrad.bench.gpu.setup import Setup, UnavailableError, small_tiles
from cdgrad.bench.gpu.targets import targets
from cdgrad.bench.page import gpu_tables
from cdgrad.bench.records import GpuRecord, Section
from cdgrad.messages import named
from cdgrad.study.records.environment import environment

_RESERVE = 0.05  # of the time, in which an item that does not check the clock may still finish
_LAST = 0.015  # of it, in which such an item is ended and the tables are printed
_REHEARSAL = 10  # times as long a rehearsal may take: no item is left out, but a process that hangs ends it


def record(
    setup: Setup, seconds: float, write: Callable[[GpuRecord], None], begun: float | None = None
) -> GpuRecord:
    """Measure all sections; an item that fails or exceeds the time does not affect the others.

    Args:
        setup: device and sizes.
        seconds: how long everything may take, imports and compilation included; a rehearsal ten times that.
        write: called with the record after every item.
        begun: when the time began, by `time.perf_counter`; now, if it is not given.
    """
    sections = _sections()
    result: GpuRecord = {
        "machine": {},
        "rehearsal": setup.rehearsal,
        "seconds": 0.0,
        "targets": [],
        "sections": {},
    }

    def update() -> None:
        # Not before the first item, since it initializes CUDA, which takes seconds.
        result["machine"] = result["machine"] or machine(setup)
        result["seconds"] = round(time.perf_counter() - start, 1)
        result["targets"] = targets(result)
        write(result)

    if setup.rehearsal:
        small_tiles()
    start, share = time.perf_counter() if begun is None else begun, 0.0
    # Before the end, which may be that of a rented machine, or of whoever waits.
    limit = seconds * (_REHEARSAL if setup.rehearsal else 1 - _LAST)
    timer = threading.Timer(start + limit - time.perf_counter(), _stop, [result, update])
    timer.daemon = True
    timer.start()
    whole = sum(part for _, part, _ in sections)
    for name, part, items in sections:
        share += part / whole
        setup.deadline = start + share * seconds * (1 - _RESERVE)
        section: Section = {"rows": {}, "skipped": [], "errors": {}, "seconds": 0.0}
        result["sections"][name] = section
        print(f"measuring {name}", file=sys.stderr, flush=True)
        _measure(setup, section, items, update)
        if name != "compilation":  # the next section, which times nothing, needs what is still compiled
            if late := setup.collect():
                _add_late(result["sections"]["compilation"], late)
            setup.collect = dict[str, dict[str, float]]
            processes.end_all(waiting=False)
        update()
    processes.end_all()
    timer.cancel()
    return result


def _add_late(compilation: Section, seconds: dict[str, dict[str, float]]) -> None:
    """Rows of cases that were not compiled in the section's time, but in that of the next."""
    for name, row in seconds.items():
        if row and name not in compilation["rows"]:
            compilation["rows"][name] = row
            compilation["skipped"] = [
                each for each in compilation["skipped"] if each != name and not each.startswith(f"{name} (")
            ]


def _sections() -> list[tuple[str, float, Callable[[Setup], dict[str, Any]]]]:
    """Name, share of the time in seconds of 120, and what gives the items."""
    from cdgrad.bench.gpu import checks, compilation, jax_rows, operator, study_loop, training

    return [
        ("compilation", 34, compilation.items),
        ("parity", 10, operator.parity),
        ("checks", 5, checks.items),
        ("floor", 9, operator.floor),
        ("host", 2, operator.host),
        ("graph", 1, training.graphs),
        ("training steps", 13, training.steps),
        ("study loop", 16, study_loop.items),
        ("jax", 2, jax_rows.items),
        ("workers", 28, study_loop.workers),
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
    for i, (name, item) in enumerate(todo.items()):
        now = time.perf_counter()
        setup.share_ends = now + (setup.deadline - now) / (len(todo) - i)
        if setup.over:
            section["skipped"].append(name)
            continue
        try:
            section["rows"][name] = item()
        except UnavailableError as error:
            section["skipped"].append(f"{name} ({error})")
        except Exception as error:
            section["errors"][name] = _line(error)
        section["seconds"] = round(time.perf_counter() - start, 1)
        write()


def _line(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{named(error):.300} ({os.path.basename(where.filename)}:{where.lineno})"


def _stop(result: GpuRecord, update: Callable[[], None]) -> None:
    """End an item that does not check the clock, such as a compilation, on a rented machine."""
    try:
        *_, section = result["sections"].values()
        section["skipped"].append("what was under way when the time was over")
        update()
        print(gpu_tables(result), flush=True)
        processes.end_all()
    finally:
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
    facts["commit"] = environment()["commit"]
    facts["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    for package in ("torch", "triton", "jax", "cdgrad"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts

"""The system that cdgrad runs on: the CPU's name, as records have it, and the variables of processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path


def cpu_name() -> str:
    """The model of the CPU, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Generator[None]:
    """Processes started inside have `variables`."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""The system that cdgrad runs on: what CPUs and GPUs are and can, variables and the end of processes."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cpu_name() -> str:
    """The model of the CPU, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@lru_cache(maxsize=64)
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, which Apple's GPUs and some of Intel's do not."""
    if device.type == "xpu":
        import torch  # here, since a process of JAX imports this module

        return bool(torch.xpu.get_device_properties(device).has_fp64)  # pyright: ignore[reportUnknownArgumentType]
    return device.type != "mps"


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
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """From now on the system kills this process when the one that started it ends, however that happens.

    A stopped process could not end on its own. Only on Linux; elsewhere this does nothing. The parent is the
    thread that started the process, so a thread that ends earlier must not start one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))

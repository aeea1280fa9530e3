"""The random generators that the user's code may draw from: torch's, numpy's and Python's global ones."""

# ruff: noqa: NPY002, the user's code may use numpy's global generator

from __future__ import annotations

import json
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device] = ()) -> Generator[None]:
    """Inside, all three are seeded, so that runs of a seed are paired; afterwards they are as before.

    Args:
        seed: from 0 to 2^63 - 1; numpy's generator and torch's on the CPU take its last 32 bits.
        devices: of CUDA, whose generators are restored as well.
    """
    with kept(devices):
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Start all three, torch's on every device, from a seed."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept(devices: Sequence[torch.device] = ()) -> Generator[None]:
    """What is drawn inside changes nothing outside; `devices` as in `seeded`."""
    before = host_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            set_host_state(before)


def host_state() -> str:
    """The states of numpy's and Python's generators, as JSON."""
    of_numpy: Any = np.random.get_state()
    kind, keys, *rest = of_numpy
    return json.dumps([[kind, keys.tolist(), *rest], random.getstate()])


def set_host_state(state: str) -> None:
    """Restore what `host_state` returned."""
    of_numpy, (version, internal, gauss) = json.loads(state)
    np.random.set_state(tuple(of_numpy))
    random.setstate((version, tuple(internal), gauss))

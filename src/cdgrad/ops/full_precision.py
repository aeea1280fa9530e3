"""Matrix products in full float32, whatever precision the program has chosen for its own.

Autocast, TF32 and bfloat16 products would each leave three digits.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_depth = 0
_before: list[tuple[Any, str]] = []


@contextmanager
def full_precision(device: str) -> Generator[None]:
    """No autocast, TF32 or bfloat16 in products of float32 tensors on that device.

    The settings of TF32 and bfloat16 are torch's globals, restored when the last thread leaves.
    """
    global _depth
    backends: Any = torch.backends
    switch = backends.mkldnn.matmul if device == "cpu" else backends.cuda.matmul
    with _lock:
        value = switch.fp32_precision
        if value not in ("ieee", "none"):
            _before.append((switch, value))
            switch.fp32_precision = "ieee"
        _depth += 1
    try:
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                yield
        else:
            yield
    finally:
        with _lock:
            _depth -= 1
            while _before and not _depth:
                _restore(*_before.pop())


def _restore(switch: Any, value: str) -> None:
    # Where it had the value of all backends, it has none of its own again: the next one reaches it, too.
    switch.fp32_precision = "none"
    if switch.fp32_precision != value:
        switch.fp32_precision = value

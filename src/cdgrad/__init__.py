"""Channel-directed gradients for convolutional networks (arXiv 2008.10766).

Names resolve on first use: the metrics need numpy alone, so a JAX user needs no torch, nor the
reverse.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgrad.attachment import Attachment, attach
    from cdgrad.metrics import L2, MeanSobolev, Metric, ReweightedL2, Sobolev, parse_metric
    from cdgrad.ops import channel_directed, channel_directed_, select_backend
    from cdgrad.selection import Selection, Target, select

__version__ = "0.1.0"
__all__ = [
    "L2",
    "Attachment",
    "MeanSobolev",
    "Metric",
    "ReweightedL2",
    "Selection",
    "Sobolev",
    "Target",
    "attach",
    "channel_directed",
    "channel_directed_",
    "parse_metric",
    "select",
    "select_backend",
]

_METRICS = ("L2", "MeanSobolev", "Metric", "ReweightedL2", "Sobolev", "parse_metric")
_HOME = dict.fromkeys(_METRICS, "cdgrad.metrics") | {
    "Attachment": "cdgrad.attachment",
    "Selection": "cdgrad.selection",
    "Target": "cdgrad.selection",
    "attach": "cdgrad.attachment",
    "channel_directed": "cdgrad.ops",
    "channel_directed_": "cdgrad.ops",
    "select": "cdgrad.selection",
    "select_backend": "cdgrad.ops",
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("cdgrad.metrics")
    if name not in _HOME:
        raise AttributeError(f"module 'cdgrad' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

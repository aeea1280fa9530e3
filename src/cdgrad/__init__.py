"""Channel-directed gradients for convolutional networks (arXiv 2008.10766).

Names resolve on first use: the metrics need numpy alone, so a JAX user needs no torch, nor the
reverse.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdgrad.lazy import lazy_names

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

_HOMES = {
    "cdgrad.attachment": ("Attachment", "attach"),
    "cdgrad.metrics": ("L2", "MeanSobolev", "Metric", "ReweightedL2", "Sobolev", "parse_metric"),
    "cdgrad.ops": ("channel_directed", "channel_directed_", "select_backend"),
    "cdgrad.selection": ("Selection", "Target", "select"),
}
_home = lazy_names("cdgrad", {name: module for module, names in _HOMES.items() for name in names})


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("cdgrad.metrics")
    return _home(name)


def __dir__() -> list[str]:
    return sorted(__all__)

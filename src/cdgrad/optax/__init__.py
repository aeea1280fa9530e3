"""Channel-directed gradients for JAX: the operator, and the Optax transformation made of it.

Importing this package imports jax, and no torch; `channel_directed` imports optax, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdgrad.lazy import lazy_names
from cdgrad.optax.operator import directed
from cdgrad.optax.selection import Selection, Skipped, Target, selection

if TYPE_CHECKING:
    from cdgrad.optax.transformation import ChannelDirectedState, channel_directed

__all__ = [
    "ChannelDirectedState",
    "Selection",
    "Skipped",
    "Target",
    "channel_directed",
    "directed",
    "selection",
]

_NEED_OPTAX = ("ChannelDirectedState", "channel_directed")
__getattr__ = lazy_names(__name__, dict.fromkeys(_NEED_OPTAX, "cdgrad.optax.transformation"))

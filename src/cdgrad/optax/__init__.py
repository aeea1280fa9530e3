"""Channel-directed gradients for JAX: the operator, and the Optax transformation made of it.

Importing this package imports jax and optax, and no torch.
"""

from __future__ import annotations

from cdgrad.optax.operator import directed
from cdgrad.optax.selection import Selection, Skipped, Target, selection
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

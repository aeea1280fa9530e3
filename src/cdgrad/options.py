"""The keywords of `cdgrad.attach` as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import nn

from cdgrad.name_patterns import Patterns
from cdgrad.ops.local import BACKENDS
from cdgrad.selection import Blocks, Direction, Selection, find_targets
from cdgrad.target_operator import Rescale


@dataclass(frozen=True)
class Options:
    """The keywords of `attach`."""

    direction: Direction = "output"
    linear: bool = False
    include: Patterns = None
    exclude: Patterns = None
    blocks: Blocks | None = None
    rescale: Rescale = "none"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.rescale not in get_args(Rescale):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, got {self.rescale!r}")
        if self.backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {self.backend!r}")

    def select(self, model: nn.Module) -> Selection:
        """The targets of a model."""
        return find_targets(model, self.direction, self.linear, self.include, self.exclude, self.blocks)

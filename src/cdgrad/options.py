"""The keywords of `cdgrad.attach` as one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from torch import nn

from cdgrad.name_patterns import Patterns
from cdgrad.ops.local import BACKENDS
from cdgrad.selection import Blocks, Direction, Selection, find_targets
from cdgrad.target_operator import Rescale


@dataclass(frozen=True)
class Options:
    """The keywords of `attach`: plain data of their own, which changes of the caller's do not reach."""

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

        for name in ("include", "exclude", "blocks"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def select(self, model: nn.Module) -> Selection:
        """The targets of a model."""
        return find_targets(model, self.direction, self.linear, self.include, self.exclude, self.blocks)


def _plain(value: Any) -> Any:
    """Lists and dicts in place of other collections; what is none is refused where it is used."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, Collection) and not isinstance(value, str):
        return list(cast(Collection[Any], value))
    return value

"""What is processed of a parameter tree and what is not: values, printed as a table."""

from __future__ import annotations

from dataclasses import dataclass

from cdgrad import tables


@dataclass(frozen=True)
class Target:
    """One leaf to direct: `groups` consecutive intervals of channels along `axis`.

    Where the intervals differ in size, `sizes` has their channels, and `groups` is 1.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    groups: int
    note: str = ""
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One leaf that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What is processed and what is not: every leaf, in the order of the tree."""

    leaves: tuple[Target | Skipped, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """The processed leaves."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Target))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The others."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Skipped))

    def __str__(self) -> str:
        processed = [(t.name, t.shape, t.axis, t.groups, t.sizes, t.note) for t in self.targets]
        return tables.selection(processed, [(s.name, s.reason) for s in self.skipped])

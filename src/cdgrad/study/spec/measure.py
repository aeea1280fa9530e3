"""What a study compares: the number that each of its runs ends with, and which of two numbers is better."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from cdgrad.study.spec.rules import one_of

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 ._@+-]{0,29}")
# Columns of the records that hold something else, and a key that an entry returns beside its result.
_RESERVED = frozenset(
    ("arm", "seed", "status", "cell", "trial", "evaluated", "epochs", "seconds", "started", "fingerprint")
) | {"message", "values", "measures", "config", "environment", "replicate", "diverged"}
_PREFIXES = ("curve.", "epoch.", "measure.", "value.")
_NAME_RULE = (
    "name must be 1 to 30 letters, digits, spaces and . _ @ + -, a letter first, and none of "
    f"{', '.join(sorted(_RESERVED))}, nor one that begins with {', '.join(_PREFIXES)}"
)


@dataclass(frozen=True)
class Measure:
    """The table ``[metric]``: what the result of a run is, and which direction is better.

    Attributes:
        name: such as ``"perplexity"``; the `entry` returns it under that key, and the report names it so.
        direction: the better values are the small ones, ``"min"``, or the large ones, ``"max"``.
        unit: of the values, such as ``"nats"``; empty for a number without one.
        percent: the values are percentages, from 0 to 100, so that differences are in points.
    """

    name: str
    direction: str = field(metadata=one_of("min", "max"))
    unit: str = ""
    percent: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{_NAME_RULE}; got {self.name!r:.60}")
        if self.unit and (self.percent or not self.unit.isprintable() or len(self.unit) > 16):
            rule = "must be empty where percent = true" if self.percent else "must be up to 16 characters"
            raise ValueError(f"unit {rule}; got {self.unit!r:.60}")

    @property
    def refusal(self) -> str:
        """Why no study may begin with this name; empty where it may."""
        reserved = self.name.lower() in _RESERVED or self.name.startswith(_PREFIXES)
        return f"{_NAME_RULE}; got {self.name!r}" if reserved else ""

    @property
    def title(self) -> str:
        """The name at the beginning of a sentence; one that is the user's own stays as it is."""
        return self.name.capitalize() if self in (ERROR, ACCURACY) else self.name

    @property
    def key(self) -> str:
        """The name as an identifier, such as ``word_error_rate``."""
        return re.sub(r"\W+", "_", self.name).strip("_")

    @property
    def sign(self) -> float:
        """1 where small values are better, -1 where large ones are."""
        return -1.0 if self.direction == "max" else 1.0

    def cost(self, value: float) -> float:
        """`value`, or its negative where large values are better: small is better; infinite for nan."""
        return math.inf if math.isnan(value) else self.sign * value

    def value(self, recorded: float | None) -> float:
        """A run's result. Of a diverged run without a finite one, the worst percentage, or else nan."""
        if recorded is not None and math.isfinite(recorded):
            return recorded
        return (100.0 if self.direction == "min" else 0.0) if self.percent else math.nan

    def shown(self, value: float) -> str:
        """The value with its name and unit, such as ``error 4.25 %``."""
        number = f"{value:.2f} %" if self.percent else f"{value:.4g} {self.unit}".rstrip()
        return f"{self.name} {number}"


ERROR = Measure("error", "min", percent=True)  # where a specification has no table [metric]
ACCURACY = Measure("accuracy", "max", percent=True)  # what else the built-in training loop measures

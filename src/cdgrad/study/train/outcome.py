"""What a run measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from cdgrad.study.spec.measure import ERROR

Epoch = dict[str, float]
OnEpoch = Callable[[int, Epoch], None]


def in_measure(name: str, errors: Mapping[str, float]) -> dict[str, float]:
    """Numbers with errors in percent under keys that end in ``error``, as the measure `name` has them.

    An accuracy is 100 minus the error, under a key that ends in ``accuracy``.
    """
    if name == ERROR.name:
        return dict(errors)
    named = ((key.endswith(ERROR.name), key, value) for key, value in errors.items())
    return {
        key.removesuffix(ERROR.name) + name if is_error else key: 100 - value if is_error else value
        for is_error, key, value in named
    }


@dataclass
class Outcome:
    """What a run measured. `error` is in percent, on the split that the study evaluates; or the accuracy.

    `epochs` holds one dict an epoch: mean training loss, training error and validation error in
    percent, L2 norm of the convolution weights, learning rate of the last step, and of the last
    gradient g of the epoch, over all weights that the arm changes at once, the cosine of g and P g
    and the ratio of their norms (1 where nothing is changed). With a weight average, the validation
    error and `error` are the average's. A run whose loss or weights stop being finite ends there: it
    is "diverged" and evaluated as it is. `measures` holds further final numbers of the user's own code,
    `columns` what else a `cdgrad.study.records.Run` has a column for, by name, and `environment` how the run
    was executed: the operator's backends, and whether its steps were CUDA graphs. `earlier` is the number of
    seconds that the run took before it was resumed.
    """

    status: Literal["ok", "diverged"] = "ok"
    error: float = math.nan
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    measures: dict[str, float] = field(default_factory=dict[str, float])
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    model: nn.Module = field(default_factory=nn.Module, repr=False)
    earlier: float = 0.0

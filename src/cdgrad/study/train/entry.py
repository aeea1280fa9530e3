"""Runs of the user's own training code: a function of a seed and an arm that returns its numbers.

.. code-block:: python

    def run(seed, arm):                      # entry = "mytrain:run"
        torch.manual_seed(seed)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=arm.values.get("lr", 0.1))
        arm.attach(optimizer, model)         # the arm's metric, or nothing
        for epoch in range(1, 11):
            ...
            arm.report(epoch, loss=..., validation_error=...)
        return {"error": ...}                # percent, and any further numbers
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from cdgrad.attachment import Attachment
from cdgrad.study import StudyError
from cdgrad.study.callables import load_callable, users_modules
from cdgrad.study.spec import Setting
from cdgrad.study.train.arms import attach_arm
from cdgrad.study.train.outcome import Epoch, Outcome


class EntryArm:
    """The arm of a run, as the user's training code sees it.

    Attributes:
        name: of the arm.
        values: the arm's ``values`` and, over them, a tuning trial's, under dotted keys.
        evaluate: the part whose error to return, ``"test"`` or ``"validation"``.
    """

    def __init__(
        self, name: str, setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None]
    ) -> None:
        self.name = name
        self.values: dict[str, Any] = dict(setting.values)
        self.evaluate = setting.evaluate
        self.attached = setting.metric == "none" and not setting.centralize
        self.epochs: list[Epoch] = []
        self._setting = setting
        self._seed = seed
        self._on_epoch = on_epoch

    def attach(self, optimizer: Optimizer, model: nn.Module) -> Attachment | None:
        """Attach to `optimizer` what the arm says, as `cdgrad.attach`; None where that is nothing."""
        self.attached = True
        return attach_arm(self._setting, optimizer, model, self._seed)

    def report(self, epoch: int, **measures: float) -> None:
        """Keep what was measured in an epoch, for curves and progress.

        Args:
            epoch: counted from 1, one more each time.
            measures: numbers, such as ``loss`` and ``validation_error`` (percent, which is plotted).

        Raises:
            StudyError: an epoch out of order, or something that is no number.
        """
        if epoch != len(self.epochs) + 1:
            raise StudyError(
                f"arm.report expects epoch {len(self.epochs) + 1} next, counted from 1; got {epoch!r}"
            )
        self.epochs.append(_numbers(measures, "arm.report"))
        self._on_epoch(epoch, self.epochs[-1])


def run_entry(arm: str, setting: Setting, seed: int, on_epoch: Callable[[int, Epoch], None]) -> Outcome:
    """Call the user's training code once.

    The generators of torch, numpy and random are seeded before, so that code which relies on them is
    paired over the arms; torch's, on the CPU, is left as it was.

    Raises:
        StudyError: it cannot be imported, ignores the arm, or returns anything but numbers with a
            finite ``error``.
    """
    run = load_callable(setting.entry)
    seen = EntryArm(arm, setting, seed, on_epoch)
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        np.random.seed(seed % 2**32)  # noqa: NPY002, the user's code may use it
        random.seed(seed)
        try:
            with users_modules():
                result = run(seed, seen)
        except SystemExit as error:
            raise StudyError(f"{setting.entry} ended the process (exit status {error.code!r})") from error
    if not isinstance(result, Mapping) or "error" not in result:
        raise StudyError(f'{setting.entry} must return a dict with "error" in percent; got {result!r:.60}')
    if not seen.attached:
        raise StudyError(
            f"{setting.entry} never called arm.attach(optimizer, model): arm {arm} would equal the baseline"
        )
    measures = _numbers(result, setting.entry)  # pyright: ignore[reportUnknownArgumentType]
    error = measures.pop("error")
    if not math.isfinite(error):
        raise StudyError(
            f"{setting.entry} returned error {error}; a diverged run is a result: measure it, mistakes "
            'count 100 %, and add "diverged": True'
        )
    diverged = bool(measures.pop("diverged", 0))
    return Outcome("diverged" if diverged else "ok", error, seen.epochs, measures)


def _numbers(values: Mapping[Any, Any], source: str) -> dict[str, float]:
    """Numbers, arrays and tensors of one element as floats."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        try:
            numbers[str(key)] = float(value)
        except (TypeError, ValueError):
            raise StudyError(f"{source} gave {key} = {value!r:.60}, which is not a number") from None
    return numbers

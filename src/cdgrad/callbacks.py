"""What the callbacks of trainers have in common: they attach, and resume from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cdgrad.attachment import Attachment, attach
from cdgrad.metric_schedule import Schedule
from cdgrad.metrics import Metric
from cdgrad.target_gradients import NoGradientError


def attached(
    optimizer: Optimizer,
    model: nn.Module,
    metric: Metric | str | Mapping[str, Metric | str],
    options: Mapping[str, Any],
    schedule: Schedule | None,
    state: Mapping[str, Any] | None,
) -> Attachment:
    """`attach`, then continue in a state that was saved, if there is one; attached is what this returns.

    Warns:
        UserWarning: the saved metric is another one than the callback was given.
    """
    handle = attach(optimizer, model, metric, **options)
    given = handle.state_dict()["metric"]
    try:
        if state is not None:
            handle.load_state_dict(state)
        if schedule is not None:
            handle.schedule(schedule)
        elif state is not None and state["metric"] != given:
            warnings.warn(
                f"training resumes in {state['metric']}, the metric of the checkpoint, and not in {given}, "
                "that of the callback; for the latter, set the metric of the callback's handle when training "
                "has begun",
                stacklevel=3,
            )
    except BaseException:
        handle.remove()  # nobody else has it, and the next attempt would find the weights attached
        raise
    return handle


def statistics_of(handle: Attachment) -> dict[str, float]:
    """`Attachment.statistics` by the names that trainers log; none while all weights are frozen."""
    try:
        return {f"cdgrad/{name}": value for name, value in handle.statistics().items()}
    except NoGradientError:
        return {}


def state_key(name: str, options: Mapping[str, Any]) -> str:
    """The name of a callback's state in a checkpoint: callbacks for different weights have one each."""
    chosen = {name: value for name, value in sorted(options.items()) if name not in ("rescale", "backend")}
    return f"{name} {chosen}" if chosen else name

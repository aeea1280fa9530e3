"""A `transformers` callback: the optimizer of a `Trainer` sees channel-directed gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cdgrad.attachment import Attachment
from cdgrad.callbacks import attached, state_key, statistics_of
from cdgrad.metric_schedule import Schedule
from cdgrad.metrics import Metric


class ChannelDirected(TrainerCallback):
    """`cdgrad.attach` as a `Trainer` callback.

    It attaches when training starts, to the optimizer inside Accelerate's wrapper, and detaches when it
    ends, so that ``train()`` can be called again. The step count is saved in the state of the
    trainer (``trainer_state.json`` of every checkpoint folder), and ``train(resume_from_checkpoint=...)``
    continues there, wherever the folder is.

    Args:
        metric: see `cdgrad.attach`.
        schedule: the metric, or lam, as a function of the step, see `cdgrad.Attachment.schedule`.
        statistics: log `cdgrad.Attachment.statistics` with what the trainer logs, every so many steps; 0
            for never. Callbacks that report logs, as ``transformers.integrations.TensorBoardCallback`` does,
            see them where they are listed after this one, and not where ``report_to`` names them.
        attach_options: the keywords of `cdgrad.attach`.

    Attributes:
        handle: the attachment, None outside of training.

    Raises:
        ValueError, TypeError: as `cdgrad.attach`, when training starts.

    Warns:
        UserWarning: `statistics` with ``report_to``.
    """

    def __init__(
        self,
        metric: Metric | str | Mapping[str, Metric | str],
        *,
        schedule: Schedule | None = None,
        statistics: int = 0,
        **attach_options: Any,
    ) -> None:
        self.metric, self.schedule, self.options = metric, schedule, attach_options
        self.statistics = statistics
        self.handle: Attachment | None = None
        self._last: dict[str, float] = {}
        # Not the name of the class, which the trainer would restore by itself.
        self._key = state_key("cdgrad", attach_options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; where a run resumes, at its step."""
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if self.statistics and args.report_to:
            warnings.warn(
                f"report_to={args.report_to!r} reports before this callback adds its statistics, so they "
                "would be missing there; set report_to='none' and list the callbacks that report after this "
                "one, for example transformers.integrations.TensorBoardCallback()",
                stacklevel=2,
            )
        self._detach()
        saved = _states(state).get(self._key)
        self.handle = attached(optimizer, kwargs["model"], self.metric, self.options, self.schedule, saved)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, for the next log."""
        if self.handle is not None and self.statistics and self.handle.steps % self.statistics == 0:
            self._last = statistics_of(self.handle)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the last measurement to what is logged."""
        if logs is not None and self._last:
            logs.update(self._last)
            state.log_history[-1].update(self._last)
            self._last = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the attachment's state into the trainer's, which is saved next if a checkpoint is due."""
        if self.handle is not None:
            _states(state)[self._key] = self.handle.state_dict()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


def _states(state: TrainerState) -> dict[str, Any]:
    """What the trainer saves of callbacks, by name; its type is that of the list that it is made from."""
    return cast(dict[str, Any], state.stateful_callbacks)

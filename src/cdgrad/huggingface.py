"""A `transformers` callback: the optimizer of a `Trainer` sees channel-directed gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cdgrad.attachment import Attachment, attach
from cdgrad.metric_schedule import Schedule
from cdgrad.metrics import Metric

_STATE = "cdgrad.json"


class ChannelDirected(TrainerCallback):
    """`cdgrad.attach` as a `Trainer` callback.

    It attaches when training starts, to the optimizer inside Accelerate's wrapper, and detaches when it
    ends, so that ``train()`` can be called again. The step count is saved as ``cdgrad.json`` in every
    checkpoint folder, and read from there where ``train(resume_from_checkpoint=...)`` continues.

    Args:
        metric: see `cdgrad.attach`.
        schedule: the metric, or lam, as a function of the step, see `cdgrad.Attachment.schedule`.
        statistics: log `cdgrad.Attachment.statistics` with what the trainer logs, every so many steps; 0
            for never.
        attach_options: the keywords of `cdgrad.attach`.

    Attributes:
        handle: the attachment, None outside of training.

    Raises:
        ValueError, TypeError: as `cdgrad.attach`, when training starts.
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; where a run resumes, at its step."""
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._detach()
        self.handle = attach(optimizer, kwargs["model"], self.metric, **self.options)
        if self.schedule is not None:
            self.handle.schedule(self.schedule)
        saved = Path(args.output_dir or ".", f"checkpoint-{state.global_step}", _STATE)
        if state.global_step and saved.exists():
            self.handle.load_state_dict(json.loads(saved.read_text(encoding="utf-8")))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, for the next log."""
        if self.handle is not None and self.statistics and self.handle.steps % self.statistics == 0:
            self._last = {f"cdgrad/{name}": value for name, value in self.handle.statistics().items()}

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

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the attachment's state beside the trainer's."""
        folder = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
        if self.handle is not None and state.is_world_process_zero and folder.is_dir():
            (folder / _STATE).write_text(json.dumps(self.handle.state_dict()), encoding="utf-8")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None

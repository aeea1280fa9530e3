"""A Lightning callback: every optimizer of a `LightningModule` sees channel-directed gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from cdgrad.attachment import Attachment
from cdgrad.callbacks import attached, state_key, statistics_of
from cdgrad.metric_schedule import Schedule
from cdgrad.metrics import Metric
from cdgrad.options import Options
from cdgrad.refusals import parameters

if TYPE_CHECKING or find_spec("lightning") or not find_spec("pytorch_lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
else:  # the same library under its older name
    from pytorch_lightning import Callback, LightningModule, Trainer


class ChannelDirected(Callback):
    """`cdgrad.attach` as a Lightning `Callback`.

    It attaches when training starts, or, where all selected weights are frozen then, before the first batch
    in which an optimizer holds one (as with ``BackboneFinetuning``). It saves the step count with Lightning's
    checkpoints and resumes from them, and detaches when training ends.

    Args:
        metric: see `cdgrad.attach`.
        schedule: the metric, or lam, as a function of the step, see `cdgrad.Attachment.schedule`.
        statistics: log `cdgrad.Attachment.statistics` under ``cdgrad/`` every so many steps; 0 for never.
        clip: direct before Lightning clips, so that ``gradient_clip_val`` bounds what the optimizer sees.
            With manual optimization call ``handle.apply()``, for each of `handles`, before clipping.
        attach_options: the keywords of `cdgrad.attach`. A model with several optimizers needs a metric
            that fits them all; those that hold none of the selected weights are left alone.

    Attributes:
        handles: the attachments, one for each optimizer that holds selected weights.

    Raises:
        ValueError, TypeError: as `cdgrad.attach`, when training starts; `clip` with manual optimization.

    Warns:
        UserWarning: training ended and all selected weights were frozen.
    """

    def __init__(
        self,
        metric: Metric | str | Mapping[str, Metric | str],
        *,
        schedule: Schedule | None = None,
        statistics: int = 0,
        clip: bool = False,
        **attach_options: Any,
    ) -> None:
        super().__init__()
        self.metric, self.schedule, self.options = metric, schedule, attach_options
        self.statistics, self.clip = statistics, clip
        self.handles: list[Attachment] = []
        self._states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, and resume from a checkpoint that was loaded."""
        if self.clip and not pl_module.automatic_optimization:
            raise ValueError(
                f"clip=True directs before Lightning clips, and {type(pl_module).__name__} with manual "
                "optimization clips by itself; leave clip=False, and call handle.apply() for each of the "
                "callback's handles before self.clip_gradients(...)"
            )
        self._attach(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Attach, if all selected weights were frozen until now."""
        if not self.handles:
            self._attach(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where nothing was attached."""
        if not self.handles:
            warnings.warn(
                "no gradient was directed: all selected weights were frozen, and no optimizer held one; "
                "unfreeze them and add them to an optimizer, or remove this callback",
                stacklevel=2,
            )

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        options = {
            name: value for name, value in self.options.items() if name in Options.__dataclass_fields__
        }
        weights = {target.param for target in Options(**options).select(pl_module).targets}
        optimizers = [optimizer for optimizer in trainer.optimizers if weights & parameters(optimizer)]
        if weights and not optimizers and not any(weight.requires_grad for weight in weights):
            return
        # Without a match, `attach` says why.
        states = iter(self._states)
        handles: list[Attachment] = []
        with ExitStack() as undo:
            for optimizer in optimizers or trainer.optimizers[:1]:
                state = next(states, None)
                handle = attached(optimizer, pl_module, self.metric, self.options, self.schedule, state)
                undo.callback(handle.remove)
                handles.append(handle)
            undo.pop_all()
        self.handles, self._states = handles, []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log what directing does, and direct ahead of clipping, if so chosen."""
        for handle in self.handles:
            if handle.optimizer is optimizer:
                if self.statistics and handle.steps % self.statistics == 0:
                    pl_module.log_dict(statistics_of(handle))
                if self.clip:
                    handle.apply()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach; a further ``fit`` continues at this step."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same: Lightning calls no `teardown` after an error or an interrupt."""
        self._detach()

    def _detach(self) -> None:
        self._states = [handle.state_dict() for handle in self.handles] or self._states
        for handle in self.handles:
            handle.remove()
        self.handles = []

    @property
    def state_key(self) -> str:
        """Callbacks for different weights have a state each in a checkpoint."""
        return state_key(super().state_key, self.options)

    def state_dict(self) -> dict[str, Any]:
        """The attachments' states, for Lightning's checkpoint."""
        return {"handles": [handle.state_dict() for handle in self.handles] or self._states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from them when training starts."""
        self._states = state_dict["handles"]

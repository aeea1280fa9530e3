"""How a run trains, measured after every epoch on request: what rounding moves, and how sharp the loss is.

Both are of Sun, Lao, Yezzi and Sundaramoorthi (arXiv 2206.02001). Neither changes the run's numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from cdgrad.diagnostics import divergence, sharpness
from cdgrad.study import StudyError
from cdgrad.study.spec import LoopSetting, Setting
from cdgrad.study.train.epoch import run_epoch
from cdgrad.study.train.outcome import Epoch
from cdgrad.study.train.seeding import host_state, kept, seed_all, set_host_state
from cdgrad.study.train.state import TrainingState

_IMAGES = 256  # of the loss whose sharpness is measured: a graph of its gradient fits in memory
_ITERATIONS, _TOLERANCE = 50, 1e-3  # of the power iteration


class Dynamics:
    """The measurements that ``schedule.diagnostics`` names, of one run.

    ``"divergence"`` trains a second copy with the arm's option ``rounding``, the same method in exact
    arithmetic, and measures how far the two are apart (`cdgrad.diagnostics.divergence`): the run takes twice
    the time and memory. ``"sharpness"`` is the eigenvalue of largest size of the Hessian of the training loss
    (`cdgrad.diagnostics.sharpness`), on the first images of the training split without augmentation, with
    the batch norm of training; and times the learning rate, which is 2 at the edge of stability of gradient
    descent without momentum.

    Args:
        state: the run, before its first epoch.
        seed: the run's seed.

    Raises:
        StudyError: several ranks train together.
    """

    def __init__(self, state: TrainingState, seed: int) -> None:
        if state.ranks.size > 1:
            raise StudyError("schedule.diagnostics needs one process; leave out --parallel, or the key")
        self._state = state
        self._twin: TrainingState | None = None
        self._devices = [state.device] if state.device.type == "cuda" else []
        self._names = state.schedule.diagnostics
        if "divergence" in self._names:
            with self._own_random():
                seed_all(seed)
                self._twin = TrainingState(_rounded(state), seed, state.device, state.ranks)

    def measure(self) -> Epoch:
        """What is measured after an epoch of the run."""
        measured: Epoch = {}
        if self._twin is not None:
            with self._own_random():
                run_epoch(self._twin)
            pair = [[p.detach() for p in run.model.parameters()] for run in (self._state, self._twin)]
            measured["divergence"] = divergence(*pair)
        if "sharpness" in self._names:
            measured["sharpness"] = self._sharpness()
            measured["sharpness_times_lr"] = measured["sharpness"] * self._state.epochs[-1]["lr"]
        return measured

    def state_dict(self) -> dict[str, Any]:
        """The state of the second copy."""
        if self._twin is None:
            return {}
        with self._own_random():
            return self._twin.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._twin is not None:
            with self._own_random():
                self._twin.load_state_dict(state)

    def _sharpness(self) -> float:
        state = self._state
        few = slice(_IMAGES)
        with kept(self._devices):  # dropout draws
            model = copy.deepcopy(state.model).train()  # whose running statistics may move
            logits = model(state.training.images(few))
            smoothing = state.schedule.label_smoothing
            loss = cross_entropy(logits, state.training.labels[few], label_smoothing=smoothing)
            weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
            return sharpness(loss, weights, _ITERATIONS, _TOLERANCE)

    @contextmanager
    def _own_random(self) -> Generator[None]:
        """Inside, the generators are those of the second copy; outside, they are as if it were not."""
        with kept(self._devices):
            if self._twin is not None:
                set_host_state(self._host)
                torch.set_rng_state(self._random[0])
                for device, of_device in zip(self._devices, self._random[1:], strict=True):
                    torch.cuda.set_rng_state(of_device, device)
            yield
            on_devices = [torch.cuda.get_rng_state(device) for device in self._devices]
            self._random, self._host = [torch.get_rng_state(), *on_devices], host_state()


def _rounded(state: TrainingState) -> Setting:
    """The run's setting with other rounding errors, and without measurements of its own."""
    assert isinstance(state.setting, LoopSetting)
    schedule = replace(state.schedule, diagnostics=(), test_every_epoch=False)
    return replace(state.setting, schedule=schedule, rounding=2 if state.setting.rounding == 3 else 3)

"""One run: build, train, measure. The same seed gives every arm the same start, data and order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.files import SAVE_EVERY
from cdgrad.study.spec import ERROR, Setting
from cdgrad.study.train.arms import operator_backends
from cdgrad.study.train.checkpoint import Checkpoint
from cdgrad.study.train.device import forget_peak_memory, peak_memory, the_device
from cdgrad.study.train.dynamics import Dynamics
from cdgrad.study.train.epoch import error, run_epoch
from cdgrad.study.train.execution import Captured, Execution, choose, stream_of
from cdgrad.study.train.outcome import Epoch, OnEpoch, Outcome, in_measure
from cdgrad.study.train.ranks import ALONE, Ranks
from cdgrad.study.train.seeding import seeded
from cdgrad.study.train.state import TrainingState


def train(
    setting: Setting,
    seed: int,
    on_epoch: OnEpoch,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every: float = SAVE_EVERY,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train once and measure; the global random state is left as it was.

    Args:
        setting: everything but the seed.
        seed: decides the split, the initialization, the order and the augmentation of the data.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.
        device: where to train, such as ``"cuda:0"``; data and network are held there.
        checkpoint: a file to save the state to, and to resume from where it exists: on the CPU to the
            same bits as without interruption. It is removed when the run is over, unless it is a study's.
        every: least number of seconds between two saves; saves happen between epochs.
        ranks: the processes that train together. All of them call this, and all return the same numbers.

    Raises:
        StudyError: the device does not exist; the model or optimizer cannot be built, or the arm not
            attached; the data set is too small; the checkpoint is of another run or cannot be
            written, or the weights are sharded.

    Warns:
        UserWarning: the checkpoint is damaged, and the run starts over.
    """
    where = the_device(device)
    forget_peak_memory(where)
    if checkpoint and ranks.kind == "fsdp2":
        raise StudyError("a checkpoint of sharded weights is not supported; use ddp")
    saved = checkpoint and Checkpoint(checkpoint, setting, seed, where.type, every)
    # Named, because torch warns where there are several devices and none is named.
    forked = [where] if where.type == "cuda" else []
    with stream_of(where), seeded(seed, forked):
        state = TrainingState(setting, seed, where, ranks)
        dynamics = Dynamics(state, seed) if state.schedule.diagnostics else None
        if saved:
            _resume(state, dynamics, saved)
        state.execute, refusal = choose(state)
        while not state.over:
            run_epoch(state)
            if dynamics:
                state.epochs[-1] |= dynamics.measure()
            on_epoch(len(state.epochs), in_measure(setting.measure, state.epochs[-1]))
            if saved and saved.due and not state.over and ranks.rank == 0:
                saved.save(_content(state, dynamics))
        outcome = _outcome(state)
        if where.type == "cuda":
            outcome.environment["graph"] = _graphs(state.execute, refusal)
    if saved:
        outcome.earlier = saved.earlier
        if ranks.rank == 0:
            saved.remove()
    return outcome


def _content(state: TrainingState, dynamics: Dynamics | None) -> dict[str, Any]:
    """What a checkpoint keeps of a run."""
    return state.state_dict() | ({"dynamics": dynamics.state_dict()} if dynamics else {})


def _resume(state: TrainingState, dynamics: Dynamics | None, saved: Checkpoint) -> None:
    """Restore the state that the checkpoint holds, if there is one."""
    if (content := saved.load()) is None:
        return
    try:
        state.load_state_dict(content)
        if dynamics:
            dynamics.load_state_dict(content["dynamics"])
    except Exception as problem:  # whatever the values lead torch to
        raise StudyError(
            f"{saved.path} does not hold the state of this run ({type(problem).__name__}); move it "
            "away, or name another file"
        ) from problem


def _outcome(state: TrainingState) -> Outcome:
    """Evaluate the final network; without `test_every_epoch` the only place that reads the test split."""
    split = state.on_device(state.data.test) if state.setting.evaluate == "test" else state.validation
    status, measure = "diverged" if state.diverged else "ok", state.setting.measure
    (result,) = in_measure(measure, {ERROR.name: error(state, split)}).values()
    return Outcome(
        status,
        result,
        [in_measure(measure, epoch) for epoch in state.epochs],
        in_measure(measure, selected_errors(state.epochs)),
        _columns(state),
        {"backend": operator_backends(state.handle)},
        state.evaluated,
    )


def _graphs(execution: Execution, refusal: str) -> str:
    """Whether the steps were CUDA graphs, for the record."""
    refusal = refusal or (execution.refusal if isinstance(execution, Captured) else "")
    return f"not captured: {refusal}" if refusal else "captured"


def _columns(state: TrainingState) -> dict[str, Any]:
    """What the run's record has columns for, besides what was measured."""
    return {
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "images": len(state.epochs) * len(state.training),
        "memory": peak_memory(state.device),
    }


def selected_errors(epochs: list[Epoch]) -> dict[str, float]:
    """The smallest test error of any epoch and the mean of the last ten, where the epochs have test errors.

    Both choose by the test set: they belong beside the error of the last epoch, to show what such a choice
    gains, and never in its place.
    """
    errors = [epoch["test_error"] for epoch in epochs if "test_error" in epoch]
    if not errors:
        return {}
    last = errors[-10:]
    return {"best_epoch_test_error": min(errors), "last_ten_epochs_test_error": math.fsum(last) / len(last)}

"""``cdgrad train``: one run of a study by the same code, printed epoch by epoch, without a record."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tomllib
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgrad.commands.arguments import (
    UsageError,
    check_new_file,
    count,
    failed,
    integer,
    specification,
    write_new_file,
)
from cdgrad.study import StudyError
from cdgrad.study.shown import named, one_line

if TYPE_CHECKING:
    from cdgrad.study.spec import EntrySetting, Setting, Spec
    from cdgrad.study.train.outcome import Epoch, OnEpoch, Outcome
    from cdgrad.study.train.ranks import Ranks


HELP = "execute one run of a study, without a record"
DESCRIPTION = "Execute one run of a study with the same code and print every epoch; nothing is recorded."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "spec",
        metavar="SPEC",
        nargs="?",
        default="quickstart",
        help="a TOML file, or a built-in name (default: quickstart)",
    )
    parser.add_argument("--arm", help="arm to train (default: the baseline)")
    parser.add_argument("--cell", help="cell to train in (default: the first in SPEC)")
    parser.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="override a value, such as schedule.epochs=3, metric=sobolev:lam=0.01 or lam=0.1; repeatable",
    )
    parser.add_argument(
        "--threads", type=count, default=1, metavar="N", help="CPU threads (default: 1, as in a study)"
    )
    parser.add_argument("--device", default="cpu", help="device to train on, such as cuda (default: cpu)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="resume from FILE if it exists; save the training state to it after every epoch; delete it at "
        "the end",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="save the trained weights to FILE")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the curves for TensorBoard")
    parser.add_argument(
        "--parallel",
        choices=("ddp", "fsdp2"),
        help="train data-parallel across the processes that torchrun launched (ddp or fsdp2); start with: "
        "torchrun --nproc-per-node N -m cdgrad train ...",
    )


def run(options: argparse.Namespace) -> int:
    """Train, print every epoch and the final error, and save the weights."""
    from cdgrad.study.train.ranks import LostRanksError

    try:
        return _run(options)
    except LostRanksError as error:
        failed(1, str(error))
        # The threads of the broken process group can abort Python's own way out, with status -6.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _run(options: argparse.Namespace) -> int:
    import torch

    from cdgrad.study.callables import modules_beside
    from cdgrad.study.train.ranks import join

    spec = specification(options.spec)
    arm, cell = options.arm or spec.baseline, options.cell or next(iter(spec.cells))
    for kind, name, known in (("arm", arm, spec.arms), ("cell", cell, spec.cells)):
        if name not in known:
            raise UsageError(f"{spec.name} has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
    if options.weights and spec.entry:
        raise UsageError(
            f"--weights is not available with `entry`: the model of {spec.entry} is not visible to cdgrad"
        )
    for flag, file in (("--weights", options.weights), ("--checkpoint", options.checkpoint)):
        # A checkpoint that exists may be this run's: it is read before training.
        if file and not (flag == "--checkpoint" and os.path.isfile(file)):
            check_new_file(file, flag)
    setting = setting_of(spec, cell, arm, options.set or ())
    torch.set_num_threads(options.threads)
    with modules_beside(spec.folder), join(options.parallel, options.device) as ranks:
        outcome = run_single(
            arm,
            setting,
            options.seed,
            device=ranks.device,
            checkpoint=options.checkpoint,
            tensorboard=options.tensorboard,
            ranks=ranks,
            overrides=[text.partition("=")[0].strip() for text in options.set or ()],
        )
        weights = ranks.state_dict(outcome.model) if options.weights else None
    if ranks.rank == 0:  # once all ranks have left their group, of which none waits for this
        result = spec.measure.shown(outcome.error)
        print(f"{arm}, seed {options.seed}: {outcome.status}, {spec.evaluate} {result}")
        if weights is not None:
            _save(weights, options.weights)
    return 0


def _save(weights: Any, file: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    try:
        print(f"weights: {write_new_file(file, buffer.getbuffer())}")
    except OSError as error:
        raise StudyError(f"cannot write the weights: {error}") from error


def setting_of(spec: Spec, cell: str, arm: str, overrides: Sequence[str]) -> Setting:
    """The setting of an arm in a cell with ``key=value`` overrides, such as ``schedule.epochs=3``.

    Keys are those of a search space, and ``task.KEY`` and ``metric``; values are read as TOML, and
    what is not TOML is text. For an `entry`, all but the arm's own keys are its values.

    Raises:
        StudyError: an override without ``=``, of an unknown key, or with a value that is not allowed.
    """
    from cdgrad.metrics import parse_metric
    from cdgrad.study.spec import NO_METRIC
    from cdgrad.study.spec.rules import check_values

    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise StudyError(f"--set takes key=value, such as schedule.epochs=3; got {text!r}")
        values[key.strip()] = _toml(value.strip())
    check_values(values, "--set")
    of_task = [] if spec.entry else [key for key in values if key.startswith("task.")]
    task = {key.removeprefix("task."): values.pop(key) for key in of_task}
    if task:
        tables = {**spec.cells[cell], "task": {**spec.cells[cell].get("task", {}), **task}}
        spec = replace(spec, cells={**spec.cells, cell: tables})
    if "metric" in values:
        metric = str(values.pop("metric"))
        try:
            metric = metric if metric == NO_METRIC else str(parse_metric(metric))
            changed = replace(spec.arms[arm], metric=metric)
            if changed.refusal:
                raise ValueError(changed.refusal)
            spec = replace(spec, arms={**spec.arms, arm: changed})
        except ValueError as error:
            raise StudyError(f"--set metric: {error}") from None
    return spec.setting(cell, arm, values)


def run_single(
    arm: str,
    setting: Setting,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    tensorboard: Path | None = None,
    ranks: Ranks | None = None,
    overrides: Sequence[str] = (),
) -> Outcome:
    """Execute the run and print a line an epoch; see `cdgrad.study.train.train` for the arguments.

    Args:
        arm: its name.
        setting: what to run.
        seed: as in a study.
        device: where to train.
        checkpoint: the file to resume from, and to save the training state to after every epoch.
        tensorboard: a folder for the curves.
        ranks: the processes that train together; only the first one prints and writes. None: this one.
        overrides: keys that were given a value, which the user's own training code must read.

    Raises:
        StudyError: the run cannot be executed; as a `UserCodeError` where it raised an exception.
    """
    from cdgrad.study.spec import EntrySetting
    from cdgrad.study.train.curves import curves
    from cdgrad.study.train.ranks import ALONE

    ranks = ranks or ALONE
    first = ranks.rank == 0
    with _lines_for_warnings(), curves(tensorboard if first else None) as log:

        def show(epoch: int, measured: Epoch) -> None:
            if not first:
                return
            log(epoch, measured)
            titles = ["epoch", *(_short(key).rjust(7) for key in measured)]
            if not shown:
                print("  ".join(titles))
            shown.append(epoch)
            cells = [str(epoch), *(f"{value:.4g}" for value in measured.values())]
            print("  ".join(map(str.rjust, cells, map(len, titles))), flush=True)

        shown: list[int] = []
        if isinstance(setting, EntrySetting):
            if checkpoint or device != "cpu" or ranks.kind:
                raise StudyError(
                    f"--checkpoint, --device and --parallel do not apply to {setting.entry}, which runs its "
                    "own training loop"
                )
            return _run_entry(arm, setting, seed, show, overrides)
        return _train(arm, setting, seed, show, device, checkpoint, ranks)


def _run_entry(
    arm: str, setting: EntrySetting, seed: int, show: OnEpoch, overrides: Sequence[str]
) -> Outcome:
    from cdgrad.study.train.entry import run_entry

    outcome = run_entry(arm, setting, seed, show, tuned=overrides)
    if unread := outcome.environment.get("unread"):
        warnings.warn(f"{setting.entry} never read {', '.join(unread)}: it changed nothing", stacklevel=2)
    return outcome


def _train(
    arm: str,
    setting: Setting,
    seed: int,
    show: OnEpoch,
    device: str,
    checkpoint: Path | None,
    ranks: Ranks,
) -> Outcome:
    from cdgrad.study.callables import UserCodeError
    from cdgrad.study.train.device import explained
    from cdgrad.study.train.loop import train
    from cdgrad.study.train.ranks import lost_connection

    try:
        return train(setting, seed, show, device=device, checkpoint=checkpoint, every=0, ranks=ranks)
    except (StudyError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # of the network, the optimizer or the device
        if ranks.kind and lost_connection(error):
            raise
        raise UserCodeError(f"{arm}, seed {seed} failed: {explained(error) or named(error)}") from error


def _short(key: str) -> str:
    """A heading that lets the usual columns fit in 80 characters."""
    return one_line(key).replace("_", " ").replace("validation", "val").replace("error", "err")


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@contextmanager
def _lines_for_warnings() -> Generator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"cdgrad: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

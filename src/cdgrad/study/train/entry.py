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

In a study with a table ``[metric]`` its name takes the place of ``error``, and a number alone will do.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from cdgrad.study import StudyError
from cdgrad.study.callables import UserCodeError, check_entry, load_callable, users_modules
from cdgrad.study.shown import named
from cdgrad.study.spec import ERROR, EntrySetting
from cdgrad.study.train.arms import Attachment, attach_arm
from cdgrad.study.train.outcome import Epoch, Outcome
from cdgrad.study.train.seeding import seeded


class EntryArm:
    """The arm of a run, as the user's training code sees it.

    Attributes:
        name: of the arm.
        values: the arm's ``values`` and, over them, a tuning trial's, under dotted keys.
        evaluate: the split whose error to return, ``"test"`` or ``"validation"``.
    """

    def __init__(
        self, name: str, setting: EntrySetting, seed: int, on_epoch: Callable[[int, Epoch], None]
    ) -> None:
        self.name = name
        self.values = ReadValues(setting.values)
        self.evaluate = setting.evaluate
        self.attached = setting.metric == "none" and not setting.centralize
        self.epochs: list[Epoch] = []
        self.columns: dict[str, Any] = {}  # of the run's record: known where a model was attached
        self._setting = setting
        self._seed = seed
        self._on_epoch = on_epoch

    def attach(self, optimizer: Optimizer, model: nn.Module) -> Attachment | None:
        """Attach the arm's metric to `optimizer`, as `cdgrad.attach` does; None where the arm has none."""
        self.attached = True
        self.columns = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        return attach_arm(self._setting, optimizer, model, self._seed)

    def report(self, epoch: int, **measures: float) -> None:
        """Keep what was measured in an epoch, for curves and progress.

        Args:
            epoch: counted from 1, one more each time.
            measures: numbers, such as ``loss`` and ``validation_error`` (percent, which is plotted, as is
                ``validation_NAME`` of a study whose ``[metric]`` has that name).

        Raises:
            StudyError: an epoch out of order, or something that is no number.
        """
        if epoch != len(self.epochs) + 1:
            raise StudyError(
                f"arm.report expects epoch {len(self.epochs) + 1} next, counted from 1; got {epoch!r}"
            )
        self.epochs.append(_numbers(measures, "arm.report"))
        self._on_epoch(len(self.epochs), self.epochs[-1])  # `epoch` may be a number of numpy's


class ReadValues(dict[str, Any]):
    """An arm's values, with the keys that were read: tuning one that nothing reads changes nothing."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().setdefault(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.read.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        self.read.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        self.read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self.read.update(super().keys())
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def unread(self) -> list[str]:
        """The keys that were never read: their values change nothing."""
        return sorted(set(super().keys()) - self.read)

    def check(self, entry: str, tuned: set[str]) -> None:
        """Refuse a search over values that the run did not read: all its trials would be equal.

        Raises:
            StudyError: with the key, and the one that was probably meant.
        """
        own, unread = set(super().keys()), [key for key in self.unread() if key in tuned]
        if not unread:
            return
        known = sorted(self.read - own) or sorted(self.read)
        meant = difflib.get_close_matches(unread[0], known, 1, 0.4) or known[:1]
        hint = f"; did you mean {meant[0]!r}?" if meant else ""
        raise StudyError(
            f"{entry} never read arm.values[{unread[0]!r}], so that tuning it changes nothing; it read "
            f"{', '.join(sorted(self.read)) or 'no value'}{hint}"
        )


@contextmanager
def _no_command_line(entry: str) -> Generator[None]:
    """While an entry is imported and run, the command line is not its own, and exiting is a failure."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    except SystemExit as error:
        raise StudyError(
            f"{entry} ended the process (exit status {error.code!r:.40}); return a dict and read the command "
            f'line only under if __name__ == "__main__"'
        ) from error
    finally:
        sys.argv = arguments


def run_entry(
    arm: str,
    setting: EntrySetting,
    seed: int,
    on_epoch: Callable[[int, Epoch], None],
    tuned: Iterable[str] = (),
) -> Outcome:
    """Call the user's training code once; `tuned` are the keys of the search space that it must read.

    The generators of torch, numpy and random are seeded before, so that code that relies on them is
    paired over the arms; but for those of GPUs they are restored afterwards.

    Raises:
        StudyError: it cannot be imported, ends the process, ignores the arm or a tuned value, or returns
            anything but numbers with the study's result, an ``error`` from 0 to 100 unless it says otherwise.
        UserCodeError: it raised an exception.
    """
    with _no_command_line(setting.entry):
        run = load_callable(setting.entry)
        check_entry(run, setting.entry)
        seen = EntryArm(arm, setting, seed, on_epoch)
        with seeded(seed):
            result = _called(run, setting.entry, seed, seen)
    values = _with_result(result, setting)
    if not seen.attached:
        raise StudyError(
            f"{setting.entry} never called arm.attach(optimizer, model), so that arm {arm} would equal "
            "the baseline; call it once, after the optimizer is made"
        )
    seen.values.check(setting.entry, {key.removeprefix("values.") for key in tuned})
    measures = _numbers(values, setting.entry)
    result = measures.pop(setting.measure)
    _check_result(result, setting)
    status = "diverged" if measures.pop("diverged", 0) else "ok"
    unread = {"unread": unread} if (unread := seen.values.unread()) else {}
    return Outcome(status, result, seen.epochs, measures, seen.columns, unread)


def _with_result(returned: Any, setting: EntrySetting) -> Mapping[object, object]:
    """What the code returned as a mapping that has the study's result, under its name."""
    name = setting.measure
    if isinstance(returned, Mapping):
        values = cast(Mapping[object, object], returned)
        if name in values:
            return values
        meant = difflib.get_close_matches(name, map(str, values), 1)
        hint = f"; rename {meant[0]!r} to {name!r}" if meant else ""
    elif name == ERROR.name:  # a number alone would not say that it is in percent
        values, hint = {}, ""
    else:
        with suppress(TypeError, ValueError):
            if not isinstance(returned, str | bytes):
                return {name: float(returned)}
        values, hint = {}, ""
    unit = " in percent" * setting.percent
    raise StudyError(f'{setting.entry} must return a dict with "{name}"{unit}; got {returned!r:.60}{hint}')


def _check_result(result: float, setting: EntrySetting) -> None:
    name = setting.measure
    if not math.isfinite(result):
        how = "return its measured error" if name == ERROR.name else "return the value of an untrained model"
        raise StudyError(
            f"{setting.entry} returned {name} {result}; a diverged run is a result: {how} and add "
            '"diverged": True'
        )
    if setting.percent and not 0 <= result <= 100:
        raise StudyError(
            f"{setting.entry} returned {name} {result:.6g}; it is in percent, between 0 and 100"
            + "; for another kind of number, set percent = false in [metric]" * (name != ERROR.name)
        )


def _called(run: Callable[..., Any], entry: str, seed: int, arm: EntryArm) -> Any:
    try:
        with users_modules():
            return run(seed, arm)
    except StudyError:
        raise
    except Exception as error:
        raise UserCodeError(f"{entry} failed: {named(error)}") from error


def _numbers(values: Mapping[Any, Any], source: str) -> dict[str, float]:
    """Numbers, arrays and tensors of one element as floats."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            numbers[str(key)] = float(value)
        except Exception:  # whatever an object of another library raises: torch has RuntimeErrors
            raise StudyError(f"{source}: {key} must be a number, got {value!r:.60}") from None
    return numbers

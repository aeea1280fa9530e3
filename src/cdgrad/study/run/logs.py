"""Tracebacks of failed runs, in a study's folder: they hold paths of the machine and are not published."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.files import LOGS, replace
from cdgrad.study.plan.job import run_name
from cdgrad.study.records.run import FailedRun, Run

_LONGEST = 200_000  # characters of a traceback


def keep(folder: Path, run: Run) -> None:
    """Write the traceback of a run that failed; remove the one of an earlier attempt at it."""
    file = _file(folder, run)
    with suppress(OSError):  # a full disk must not end a study that has its record already
        if isinstance(run, FailedRun) and run.traceback:
            file.parent.mkdir(exist_ok=True)
            replace(file, run.traceback[-_LONGEST:].encode("utf-8", "backslashreplace"))
        elif file.is_file():
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()


def kept_traceback(folder: Path, run: Run) -> str:
    """The kept traceback of a failed run; its message where it raised nothing, as a killed worker.

    Raises:
        StudyError: it is there and cannot be read.
    """
    file = _file(folder, run)
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"{run.message}\n(no traceback was kept)"
    except OSError as error:
        raise StudyError(f"cannot read {file}: {error.strerror}; change its permissions") from error


def matching(runs: Iterable[Run], words: Iterable[str]) -> list[Run]:
    """The runs whose name, such as ``sgd, seed 0``, has all `words` in their order; commas do not count."""
    wanted = _parts(" ".join(words))
    return [run for run in runs if _in_order(wanted, _parts(run_name(run)))]


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s/]+", text) if part]


def _in_order(wanted: list[str], present: list[str]) -> bool:
    left = iter(present)
    return all(part in left for part in wanted)


def _file(folder: Path, run: Run) -> Path:
    return folder / LOGS / f"{run_name(run)}.txt"

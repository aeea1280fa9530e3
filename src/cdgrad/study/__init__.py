"""Paired studies of optimizers: specification, training, records, statistics, report.

Nothing here imports torch before a run starts, so the command line answers at once.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from cdgrad.study.shown import one_line


class StudyError(Exception):
    """An expected failure, in one line: what came, what was expected, the next move."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class _Alias(ModuleType):
    """A module by its earlier, documented name; imports the present ones when something is asked of it."""

    def __init__(self, name: str, *present: str) -> None:
        super().__init__(name, f"The contents of {' and '.join(present)}.")
        self._present = present

    def __getattr__(self, name: str) -> Any:
        for module in () if name.startswith("__") else self._present:
            if hasattr(home := import_module(module), name):
                return getattr(home, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


for _earlier, _present in {
    "entry": ("train.entry",),
    "parquet": ("records.parquet",),
    "results": ("statistics.results",),
    "stats": ("statistics.paired", "report.verdicts"),
}.items():
    _alias = _Alias(f"{__name__}.{_earlier}", *(f"{__name__}.{module}" for module in _present))
    globals()[_earlier] = sys.modules[_alias.__name__] = _alias

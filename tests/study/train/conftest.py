"""Modules that a test writes and imports leave with it: later runs would record them as theirs."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _written_modules_leave(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    yield
    base = tmp_path_factory.getbasetemp()
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(base):
            del sys.modules[name]

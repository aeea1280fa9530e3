"""Other processes of the benchmark: they print JSON, and none outlives the section that started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

_running: list[Process] = []


class Process:
    """``python -m MODULE ARGUMENTS``; files take what it prints, so that it never waits for a reader."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._out, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115, they stay open
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdout=self._out, stderr=self._errors)
        _running.append(self)

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def printed(self) -> Any:
        """What the last whole line so far means; None before the first, and after `result`."""
        if self._out.closed:
            return None
        # By its position: reading through the file would move the one that the process writes at.
        content = os.pread(self._out.fileno(), os.fstat(self._out.fileno()).st_size, 0)
        lines = content.decode().split("\n")[:-1]
        return json.loads(lines[-1]) if lines else None

    def result(self) -> Any:
        """What the last line that it printed means, once it has ended.

        Raises:
            RuntimeError: it failed; with the last line of its errors.
        """
        status = self._process.wait()
        texts: list[str] = []
        for file in (self._out, self._errors):
            file.seek(0)
            texts.append(file.read())
        self.end()
        if status:
            last = (texts[1].strip().splitlines() or ["it says nothing"])[-1]
            raise RuntimeError(f"the process ended with status {status}: {last}")
        return json.loads(texts[0].splitlines()[-1])

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._errors.close()


def end_all() -> None:
    """End the processes that still run: they would disturb what is measured next."""
    while _running:
        _running.pop().end()

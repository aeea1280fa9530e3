"""NVIDIA's multi-process service: kernels of several processes run at the same time, and not in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager

from cdgrad.bench.gpu.setup import UnavailableError

_CONTROL = "nvidia-cuda-mps-control"
_SECONDS = 10  # to start or to end; it answers at once


@contextmanager
def service() -> Generator[dict[str, str]]:
    """Start the service; yields the environment with which a process uses it, from its first use of CUDA on.

    Raises:
        UnavailableError: it is not installed, or does not start.
    """
    control = shutil.which(_CONTROL)
    if control is None:
        raise UnavailableError(f"{_CONTROL} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = os.environ | places
        try:
            subprocess.run([control, "-d"], env=environment, check=True, timeout=_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise UnavailableError(f"{_CONTROL} did not start: {error}") from error
        try:
            yield places
        finally:
            subprocess.run([control], input="quit\n", text=True, env=environment, timeout=_SECONDS)

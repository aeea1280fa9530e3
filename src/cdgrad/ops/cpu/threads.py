"""Threads for the CPU kernels.

The threads are torch's own, entered through its OpenMP runtime (`GOMP_parallel`). After a parallel operation
they spin for some milliseconds on the cores they hold, longer than the work here takes: a thread of a pool
of ours waited for them, and two threads were no faster than one. Where torch has no such runtime, and in a
forked child, whose OpenMP threads are gone, a pool of ours runs the same function. Why not numba's parallel
loops: its portable threading layer aborts the process when two Python threads enter it, and its OpenMP layer
brings a second runtime, which hangs after a fork.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def fork_join(worker: Any, job: NDArray[np.int64], threads: int, held: object) -> None:
    """Run the compiled function on that many threads at once, this one among them, and wait for all."""
    parallel = openmp() if threads > 1 and not _forked else None
    if parallel is not None:
        parallel(worker.address, job.ctypes.data, threads, 0)
        return

    def work(_: object) -> None:
        worker.ctypes(job.ctypes.data)

    futures = [_pool().submit(work, held) for _ in range(threads - 1)]
    work(held)
    for future in futures:
        # A helper thread that has not started yet has nothing left to do.
        if not future.cancel():
            future.result()


@lru_cache(maxsize=1)
def openmp() -> Callable[[int, int, int, int], None] | None:
    """torch's own way to start its threads: function, argument, number, flags. None if it has none."""
    try:
        function = _library().GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def thread_number(count: int) -> int:
    """The address of OpenMP's function that returns the number of the thread that calls it.

    0 where so many threads are not OpenMP's.
    """
    return 0 if count == 1 or _forked or openmp() is None else _number_function()


@lru_cache(maxsize=1)
def _number_function() -> int:
    return ctypes.cast(_library().omp_get_thread_num, ctypes.c_void_p).value or 0


def _library() -> ctypes.CDLL:
    """torch's own, which is linked to its OpenMP runtime."""
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="cdgrad")


_forked = False


def _after_fork() -> None:
    """A child inherits OpenMP, and the pool, without their threads."""
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):  # absent on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)

"""Other processes of the benchmark: none outlives its section, nor the benchmark, even if that is killed.

Workers are forked from a server that has imported everything and has not initialized CUDA, so each starts in
a fraction of a second; a new interpreter would import PyTorch for seconds.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from cdgrad.machine import end_with_parent, environment_variables
from cdgrad.messages import named

# This module, so that the server ends with the benchmark. The compiler, which the first use of the operator
# imports, takes as long as PyTorch itself.
_PRELOADED = [__name__, "cdgrad.cli", "cdgrad.bench.gpu.compilation", "torch._dynamo"]
_SERVER = "CDGRAD_BENCHMARK_SERVER"  # set where the server imports this module
_SERVER_SECONDS = 15.0  # in which the server must have forked a first worker
_methods = ["forkserver", "spawn"]  # how workers start: the first that has not failed
_proved: list[str] = []  # those that gave a worker which may initialize CUDA
_running: list[Process | Worker] = []


def start_server() -> None:
    """Begin the server's imports, beside those of this process; call it before PyTorch is imported.

    A server that does not start costs time alone: workers then import everything themselves.
    """
    # The first: the working directory, where a user's file may have a module's name, is not searched. The
    # second: asking whether there is a GPU initializes no CUDA, after which no forked process could use it.
    variables = {"PYTHONSAFEPATH": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", _SERVER: "1"}
    try:
        from multiprocessing import forkserver

        with environment_variables(variables):
            forkserver.set_forkserver_preload(_PRELOADED)
            forkserver.ensure_running()
    except (ImportError, OSError, ValueError) as error:
        _give_up(error)


def _give_up(error: BaseException) -> None:
    print(f"workers start without the server: {named(error)}", file=sys.stderr, flush=True)
    _methods[:] = ["spawn"]


class _Stoppable(ABC):
    """A process that can wait, stopped, for its section.

    Attributes:
        waits: whether it does.
    """

    waits: bool
    _process: Any

    def go(self) -> None:
        """Let it continue after it has waited; the section that calls this awaits it."""
        self.waits = False
        _signal(self._process.pid, signal.SIGCONT)
        with suppress(OSError):  # it has ended, as its result says
            self._release()

    def pause(self) -> None:
        """Stop it until `go`."""
        if self.runs:
            _signal(self._process.pid, signal.SIGSTOP)

    @property
    @abstractmethod
    def runs(self) -> bool:
        """Whether it has still to answer."""

    @abstractmethod
    def _release(self) -> None:
        """Answer what it waits for."""


class Worker(_Stoppable):
    """A process of its own that calls a function of a module, once and whenever it is asked again.

    Args:
        function: what is called; its result is pickled.
        arguments: its arguments.
        waits: whether it gets `wait`, too, which returns once `go` is called; it then stays until that.

    Raises:
        RuntimeError: no process could be started.
    """

    def __init__(self, function: Callable[..., Any], *arguments: object, waits: bool = False) -> None:
        self.waits, self._asked = waits, True
        self._connection, far_end = multiprocessing.Pipe()
        try:
            self._process = _started(far_end, function, arguments, waits)
        finally:
            far_end.close()
        _running.append(self)

    @property
    def runs(self) -> bool:
        """Whether it has still to answer."""
        if self._connection.closed or not self._asked:
            return False
        return self._process.is_alive() and not self._connection.poll()

    def ask(self, *arguments: object) -> None:
        """Let it call the function again, after `result`: the device is initialized then."""
        self._asked = True
        with suppress(OSError):  # it has ended, as its result says
            self._connection.send(arguments)

    def result(self) -> Any:
        """What the function returned, once it has.

        Raises:
            RuntimeError: it raised an exception, which is named, or the process ended; it is of no more use.
        """
        self._asked = False
        try:
            answer, failure = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(2)
            answer, failure = None, f"the process ended with status {self._process.exitcode}"
        if failure:
            self.end()
            raise RuntimeError(failure)
        return answer

    def _release(self) -> None:
        self._connection.send(None)

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.join(2)
        self._connection.close()


def _started(*arguments: object) -> Any:
    """The process that answers, forked by the server or, if that does not work, a new interpreter."""
    while True:
        method = _methods[0]
        try:
            if method == "forkserver" and method not in _proved:
                _prove(method)
            return _begun(method, _answer, arguments)
        except (EOFError, OSError, RuntimeError, ValueError) as error:
            if method == "spawn":
                raise RuntimeError(f"no process can be started: {named(error)}") from error
            _give_up(error)


def _begun(method: str, target: Callable[..., None], arguments: tuple[object, ...]) -> Any:
    context: Any = multiprocessing.get_context(method)
    process: Any = context.Process(target=target, args=arguments)
    failures: list[BaseException] = [TimeoutError(f"no process in {_SERVER_SECONDS:.0f} s")]

    def start() -> None:
        try:
            process.start()
            failures.clear()
        except Exception as error:
            failures[:] = [error]

    if method == "spawn":  # by this thread, because the process ends with the one that started it
        start()
    else:  # in a thread, since it waits until the server has imported everything, and for ever if that hangs
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        thread.join(_SERVER_SECONDS)
    if failures:
        raise failures[0]
    return process


def _prove(method: str) -> None:
    """Let a first process answer.

    Raises:
        TimeoutError: it does not.
        RuntimeError: CUDA was initialized before it was forked.
    """
    connection, far_end = multiprocessing.Pipe()
    with connection:
        with far_end:
            process = _begun(method, _tell_whether_usable, (far_end,))
        if not connection.poll(_SERVER_SECONDS):
            process.kill()
            raise TimeoutError(f"no answer in {_SERVER_SECONDS:.0f} s")
        if not connection.recv():
            raise RuntimeError("CUDA was initialized before the fork")
    _proved.append(method)


def _tell_whether_usable(connection: Any) -> None:
    """Whether a forked process may initialize CUDA."""
    usable = True
    if "torch" in sys.modules:
        from cdgrad._torch_private import forked_after_cuda

        usable = not forked_after_cuda()
    connection.send(usable)


def _answer(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...], waits: bool) -> None:
    """What a worker executes."""
    end_with_parent()
    with open(os.devnull, "w") as nowhere:  # standard output is for the tables
        os.dup2(nowhere.fileno(), 1)
    options = {"wait": connection.recv} if waits else {}
    while True:
        try:
            answer = function(*arguments, **options), None
        except BaseException as error:
            answer = None, f"{named(error):.300}"
        try:
            connection.send(answer)
            arguments = connection.recv()
        except (EOFError, OSError):  # the benchmark has ended
            return


def _signal(process: int | None, number: int) -> None:
    with suppress(ProcessLookupError):
        if process is not None:
            os.kill(process, number)


class Process(_Stoppable):
    """``python -m MODULE ARGUMENTS``, which prints JSON; files take that, so it never waits for a reader.

    One that waits gets a line on standard input when `go` is called, and stays until that.
    """

    def __init__(self, module: str, *arguments: str, waits: bool = False) -> None:
        self.waits = waits
        self._out, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115, they stay open
        # -P: the working directory, where a user's file may have a module's name, is not searched.
        command = [sys.executable, "-P", "-m", module, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._out, stderr=self._errors, text=True
        )
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

    def _release(self) -> None:
        if self._process.stdin:
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        for file in (self._out, self._errors, self._process.stdin):
            if file:
                with suppress(OSError):
                    file.close()


def end_all(*, waiting: bool = True) -> None:
    """End the processes that still run: they would disturb what is measured next.

    Args:
        waiting: also those that wait for a later section; otherwise these are stopped until then.
    """
    for process in [*_running]:
        if process.waits and not waiting:
            process.pause()
        else:
            with suppress(ValueError):  # the timer's thread ends it, too
                _running.remove(process)
            process.end()


# multiprocessing waits for its processes when Python ends; what is registered later is called before that.
import_module("multiprocessing.util")
atexit.register(end_all)
if os.environ.pop(_SERVER, None):
    end_with_parent()

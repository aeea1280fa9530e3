"""The ``cdgrad`` command: arguments in, exit status out. 0 done, 1 failed, 2 misused, 130 interrupted.

A command's arguments and what it does are in its file in `cdgrad.commands`.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import cdgrad
from cdgrad.commands import bench, export, init, inspect, log, plan, record, report, study, train
from cdgrad.commands.arguments import UsageError, failed, traceback_file, unexpected
from cdgrad.study import StudyError
from cdgrad.study.callables import UserCodeError
from cdgrad.study.shown import one_line

_COMMANDS = {
    "init": init,
    "plan": plan,
    "study": study,
    "report": report,
    "log": log,
    "export": export,
    "record": record,
    "train": train,
    "inspect": inspect,
    "bench": bench,
}
_UNUSABLE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}  # what a path may lead any call to
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, or what of it the user may have
_REQUIRED = {"torch", "numba"}
_EXTRAS = {"matplotlib", "optuna", "pyarrow", "rich", "sklearn", "scipy"}


class _Parser(argparse.ArgumentParser):
    """A parser that quotes an argument on one line, whatever it holds."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Expected failures are reported in one line on stderr."""
    _prepare_streams()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:  # the names of the commands help more than that one is missing
        parser().print_help(sys.stderr)
        return 2
    options = parser().parse_args(given)
    try:
        status = options.command(options)
        sys.stdout.flush()  # where it is buffered, an error would be Python's own, after the end
        return status
    except UsageError as error:
        return failed(2, str(error))
    except UserCodeError as error:
        return failed(1, f"{error}{traceback_file(error)}")
    except StudyError as error:
        return failed(1, str(error))
    except ModuleNotFoundError as error:
        if error.name in _REQUIRED:  # left out by a user of JAX, with pip install --no-deps
            return failed(1, f"{error.name} is not installed; in a clone of cdgrad, run pip install .")
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            return failed(1, unexpected(error))
        return failed(1, f"{error.name} is not installed; in a clone of cdgrad, run pip install '.[study]'")
    except KeyboardInterrupt:
        return failed(130, "interrupted")
    except BrokenPipeError:
        # The reader of a pipe, such as head, has left; closing stderr keeps Python from complaining.
        _drop_output()
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno in _FULL:
            _drop_output()
            what = repr(str(error.filename))[:200] if error.filename else "the output"
            return failed(1, f"cannot write {what}: {error.strerror}; free some space, and run it again")
        if error.errno not in _UNUSABLE or error.filename is None:
            return failed(1, unexpected(error))
        return failed(1, f"cannot use {str(error.filename)!r:.200}: {error.strerror}; give another path")
    except Exception as error:
        return failed(1, unexpected(error))


def _prepare_streams() -> None:
    """Make both streams take all that is printed; one that is closed, as by 2>&-, is the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.set_inheritable(null, True)  # what workers print has to go somewhere, too
            stream = os.fdopen(null, "w", encoding="utf-8")
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows ? for it
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Forget what standard output could not take: Python would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        sys.stdout.close()


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; needs neither torch nor the extras."""
    root = _Parser(
        prog="cdgrad",
        description="Channel-directed gradients, and paired studies of whether they help.",
        epilog="A study of a minute or two: cdgrad study quickstart. One of your own: cdgrad init NAME. "
        "Options of a command: cdgrad COMMAND --help",
    )
    root.add_argument("--version", action="version", version=f"cdgrad {cdgrad.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        command.add_arguments(own)
        own.set_defaults(command=command.run)
    return root

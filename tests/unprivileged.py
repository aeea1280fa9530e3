"""Commands as a user who must heed permissions: root, as which a suite may run, reads and writes anything.

Run as a program, it executes the command lines that it is sent, and answers each with what came of it.
"""

import ctypes
import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


@contextmanager
def user(folder):
    """A function that executes a command line in `folder`: exit status, output, and lines of the errors.

    None where permissions cannot be made to count.
    """
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    child = subprocess.Popen(
        [sys.executable, __file__, *(["--drop"] if as_root else [])],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def execute(*line):
        child.stdin.write(json.dumps(line) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    secret = folder / "secret"
    secret.touch(0o000)
    try:
        yield execute if execute("--read", str(secret)) is None else None
    finally:
        secret.unlink()
        child.stdin.close()
        child.wait()
        child.stdout.close()


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except PermissionError:
        return None


def _executed(line):
    from cdgrad import cli

    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = cli.main(line)
        except SystemExit as error:
            status = error.code
    return status, output.getvalue(), errors.getvalue().splitlines()


def _heed_permissions():
    """Start anew: a program of root gets back no capability that is not in its bounding set."""
    library = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, __file__])


def main():
    if "--drop" in sys.argv:
        _heed_permissions()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    import tiny_study  # not before the program has started anew, because it imports torch

    patch = pytest.MonkeyPatch()
    tiny_study.without_workers(patch)
    tiny_study.without_figures(patch)
    for text in sys.stdin:
        line = json.loads(text)
        print(
            json.dumps(_read(line[1]) if line[0] == "--read" else _executed(line)), file=answers, flush=True
        )


if __name__ == "__main__":
    main()

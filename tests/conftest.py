import os
import signal
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import hypothesis
import interpreter
import pytest
import torch
from packaging.version import Version

# A shell that starts the suite in the background has it ignore Ctrl-C, and what the tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

interpreter.enable()

# Commands that tests start run the code beside these tests, not what is installed.
_SOURCE = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))

# Before jax starts: a suite compiles many small programs once. XLA's older code generator for the CPU takes a
# third of the time for the same run time, and about a tenth less where it does not split programs into 32.
# Since jaxlib 0.11.1 the older one is gone, and a process that asks for it ends.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if find_spec("jaxlib") and Version(version("jaxlib")) < Version("0.11.1"):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

# The suite runs on several workers; each would otherwise take all cores.
torch.set_num_threads(1)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_finish(session):
    """Workers share the compilation of the CPU kernels, which a clean checkout has not, if all are tested."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and any(item.nodeid.startswith("tests/ops/test_cpu.py") for item in session.items):
        from cdgrad.ops.cpu import launch

        families = ("reweighted", "sobolev", "mean-sobolev")
        kernels = [*product(families, launch._STORED)]
        kernels += [(family, torch.float32, "cdgrad.ops.cpu.tall") for family in families]
        own = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        for kernel in kernels[own::workers]:
            launch.compiled_worker(*kernel)


@pytest.fixture(autouse=True, scope="session")
def _temporary_files_are_pytests(tmp_path_factory):
    """Also of the processes that tests start. Ray's sockets alone would have paths that are too long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def _written_modules_leave(tmp_path_factory):
    """Modules that a test writes and imports leave with it: later runs would record them as theirs."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]

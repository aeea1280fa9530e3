import os
import signal
import sys
from pathlib import Path

import hypothesis
import interpreter
import pytest
import torch

# A shell that starts the suite in the background has it ignore Ctrl-C, and what the tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

interpreter.enable()

# Commands that tests start run the code beside these tests, not what is installed.
_SOURCE = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))

# Before jax starts: a suite compiles many small programs once, and XLA's older code generator for the
# CPU takes a third of the time for the same run time.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# The suite runs on several workers; each would otherwise take all cores.
torch.set_num_threads(1)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _written_modules_leave(tmp_path_factory):
    """Modules that a test writes and imports leave with it: later runs would record them as theirs."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]

import os
import signal
from pathlib import Path

import hypothesis
import interpreter
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

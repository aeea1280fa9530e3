"""The fuzz script, in small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_odd_input_is_read_as_it_is_or_refused_in_a_line():
    counts = {"specifications": 200, "arguments": 40, "stores": 40, "caches": 40, "folders": 12}
    counts |= {"tables": 24, "seed": 1}
    sizes = [text for name, count in counts.items() for text in (f"--{name}", str(count))]
    command = [sys.executable, "tools/fuzz.py", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

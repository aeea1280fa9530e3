"""The fuzz script, in small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mutated_specifications_and_damaged_stores_end_in_a_line():
    command = [sys.executable, "tools/fuzz.py", "--specifications", "200", "--stores", "40", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

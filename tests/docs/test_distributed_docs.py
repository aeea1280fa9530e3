"""The scripts of docs/distributed.md run as they are printed there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "distributed.md"
SCRIPTS = re.findall(
    r"^## (\w+)\n.*?^```python torchrun\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL
)

END = "dist.destroy_process_group()"
THREADS = """
import glob
for name in glob.glob("/proc/self/task/*/comm"):
    try:
        print("{when}:", open(name).read())
    except FileNotFoundError:  # the thread ended
        pass
"""


def test_both_ways_are_shown():
    assert [title for title, _ in SCRIPTS] == ["DDP", "FSDP2"]


@pytest.mark.parametrize("script", [code for _, code in SCRIPTS], ids=[title for title, _ in SCRIPTS])
def test_script(script, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        script.replace(END, f"{THREADS.format(when='before')}\n{END}\n{THREADS.format(when='after')}")
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Not by the host's name, which need not resolve.
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    done = subprocess.run([*torchrun, path], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"0\.weight +16x3x3x3 +0 +1", done.stdout)
    assert done.stdout.count("processed") == 1
    # FSDP2's own caches keep the group, but its last collectives are not those of a backward.
    if "DistributedDataParallel" in script and sys.platform == "linux":
        assert re.search("before: .*gloo", done.stdout)
        assert not re.search("after: .*gloo", done.stdout), "they can abort the process at its end"

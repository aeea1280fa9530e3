"""The scripts of docs/distributed.md run as they are printed there."""

import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from world import free_address

import cdgrad

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


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What both ranks print of every script."""
    folder = tmp_path_factory.mktemp("scripts")
    for title, script in SCRIPTS:
        before, after = (f"{THREADS.format(when=when)}\n" for when in ("before", "after"))
        (folder / title).write_text(script.replace(END, f"{before}{END}\n{after}"))
    mp.spawn(_fork, (folder,), nprocs=1)
    return {title: "".join(each.read_text() for each in folder.glob(f"{title}-*")) for title, _ in SCRIPTS}


def _fork(_, folder):
    """The ranks of one script after the other, of a process that has imported what each would for seconds."""
    torch.set_num_threads(1)
    for title, _ in SCRIPTS:
        if title != "DDP":  # whose ranks show when they import it, see docs/distributed.md
            import_module("torch.distributed.fsdp")
            cdgrad.channel_directed_([torch.ones(2, 2)], "sobolev:lam=1")
        method = "fork" if sys.platform == "linux" else "spawn"
        mp.start_processes(_rank, (folder, title, free_address()), nprocs=2, start_method=method)


def _rank(rank, folder, title, address):
    """With what torchrun tells a rank; not by the host's name, which need not resolve."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **address}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    with open(folder / f"{title}-{rank}", "w") as output, redirect_stdout(output):
        runpy.run_path(str(folder / title), run_name="__main__")


@pytest.mark.parametrize("title", [title for title, _ in SCRIPTS])
def test_script(title, printed):
    printed = printed[title]
    assert re.search(r"0\.weight +16x3x3x3 +0 +1", printed)
    assert printed.count("processed") == 1
    # FSDP2's own caches keep the group, but its last collectives are not those of a backward.
    if title == "DDP" and sys.platform == "linux":
        assert re.search("before: .*gloo", printed)
        assert not re.search("after: .*gloo", printed), "they can abort the process at its end"

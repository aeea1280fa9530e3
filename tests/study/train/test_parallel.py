"""`torchrun -m cdgrad train --parallel`: several processes make the run that one process makes."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from world import free_address, in_worlds

from cdgrad import cli
from cdgrad.study import StudyError, spec
from cdgrad.study.train import ranks as parallel
from cdgrad.study.train.loop import train
from cdgrad.study.train.ranks import Ranks

SPEC = """
title = "Parallel"
baseline = "sgd"
seeds = 1
[task]
data = "fake"
train = 61
validation = 50
augment = ["pad-crop"]
[model]
name = "{model}"
[schedule]
epochs = 2
batch = 20
{schedule}
[optimizer]
name = "torch.optim:SGD"
lr = 0.1
momentum = 0.9
[arms.sgd]
[arms.sobolev]
metric = "sobolev:lam=0.05"
"""

# For the processes of torchrun, which find it in the folder where they start.
MODULE = """
import os
from pathlib import Path
from torch import nn

def build(image_shape, classes):
    Path(f"rank{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    return nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(252, classes))
"""


class Double(nn.Module):
    """In float64 and without batch norm, so that only rounding can differ. 7 channels do not halve."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 7, 3), nn.Tanh(), nn.Conv2d(7, 6, 3, groups=1), nn.Flatten(), nn.Linear(96, classes)
        ).double()

    def forward(self, images):
        return self.layers(images.double())


def setting(arm="sobolev", model=f"{__name__}:Double", schedule=""):
    # A batch of 20 out of 61: the last one has a single image, which only one rank gets.
    return spec.parse(SPEC.format(model=model, schedule=schedule), "parallel").setting("", arm)


def run(one, kind="", **models):
    """The epochs' measures and the whole weights of a run of this world, or of this process alone."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), kind) if kind else parallel.ALONE
    outcome = train(one, 0, lambda *_: None, ranks=ranks)
    return outcome, ranks.state_dict(outcome.model)


def close(a, b, tolerance=1e-9):
    return abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-12


def check_the_run_is_that_of_one_process():
    """An uneven last batch, augmentation, micro-batches, clipping, label smoothing; every measure."""
    options = "accumulate = 3\nclip = 0.5\nlabel_smoothing = 0.1"
    for arm, schedule, kinds in (
        ("sobolev", options, ("ddp", "fsdp2")),
        ("sgd", "", ("fsdp2",)),
        ("sobolev", "ema = 0.9", ("ddp",)),
    ):
        one = setting(arm, schedule=schedule)
        alone, weights = run(one)
        for kind in kinds:
            together, whole = run(one, kind)
            assert together.error == alone.error
            for ours, theirs in zip(together.epochs, alone.epochs, strict=True):
                assert ours.keys() == theirs.keys()
                assert all(close(ours[key], theirs[key]) for key in ours), (kind, ours, theirs)
            assert whole.keys() == weights.keys()
            for name, value in whole.items():
                assert (value - weights[name]).norm() <= 1e-10 * weights[name].norm(), (kind, name)
    other, _ = run(setting("sgd"))
    assert not close(other.epochs[-1]["loss"], alone.epochs[-1]["loss"])


def check_batch_norm_is_evaluated_alike_on_all_ranks():
    """Each rank's share has statistics of its own; the running ones are one average in the end."""
    for kind in ("ddp", "fsdp2"):
        together, whole = run(setting(model="small-cnn"), kind)
        flat = torch.cat([value.flatten().double() for value in whole.values()])
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, flat)
        assert all(torch.equal(flat, other) for other in everyone)
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, (together.error, together.epochs))
        assert all(error == errors[0] for error in errors)


def check_a_killed_run_goes_on():
    """From the checkpoint of rank 0, which has what all ranks need."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    path = Path(folder[0], "run")
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), "ddp")
    options = {"checkpoint": path, "every": 0, "ranks": ranks}

    def interrupt(epoch, measured):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(setting(model="small-cnn"), 0, interrupt, **options)
    dist.barrier()
    assert path.exists()
    resumed = train(setting(model="small-cnn"), 0, lambda *_: None, **options)
    straight, _ = run(setting(model="small-cnn"), "ddp")
    # Three ranks are summed in an order that DDP's buckets decide, and those are built anew.
    for ours, theirs in zip(resumed.epochs, straight.epochs, strict=True):
        assert all(close(ours[key], theirs[key], 1e-5) for key in ("loss", "weight_norm", "norm_ratio"))
    dist.barrier()
    assert not path.exists()


def check_refusals():
    for option in ("ema = 0.9", "channels_last = true", "compile = true"):
        with pytest.raises(StudyError, match=rf"schedule\.{option.split()[0]} is not .* fsdp2; use ddp"):
            run(setting(schedule=option), "fsdp2")
    with pytest.raises(StudyError, match="a checkpoint of sharded weights is not supported; use ddp"):
        train(setting(), 0, lambda *_: None, checkpoint=Path("run"), ranks=Ranks(0, 1, "fsdp2"))
    permuted = replace(setting(), permute=True)
    with pytest.raises(StudyError, match="need whole parameters, and these are sharded; use DDP"):
        run(permuted, "fsdp2")


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def test_two_and_three_ranks():
    in_worlds((2, 3), *CHECKS)


def test_shares_cover_the_batch():
    images = torch.arange(7)
    for size in (1, 2, 3, 9):
        shares = [Ranks(rank, size).share(images, images) for rank in range(size)]
        assert torch.equal(torch.cat([part[:count] for part, _, count in shares]), images)
        assert all(len(part) == len(labels) > 0 for part, labels, _ in shares)


# The command itself, in processes of its own, on the loopback interface

SOURCE = Path(__file__).parents[3] / "src"
TRAIN = ("-m", "cdgrad", "train", "study.toml", "--arm", "sobolev")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(folder, *arguments, epochs=2, **environment):
    (folder / "mynet.py").write_text(MODULE)
    text = SPEC.format(model="mynet:build", schedule="").replace("epochs = 2", f"epochs = {epochs}")
    (folder / "study.toml").write_text(text)
    interface = "lo0" if sys.platform == "darwin" else "lo"
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "GLOO_SOCKET_IFNAME": interface} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def processes():
    """Whatever a failing test leaves behind is ended."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def kill_rank_1_in_the_middle(folder, printing):
    """Once training is under way; the time of the kill."""
    assert "loss" in printing.stdout.readline()
    assert printing.stdout.readline().split()[0] == "1"
    os.kill(int((folder / "rank1").read_text()), signal.SIGKILL)
    return time.monotonic()


def gone(folder, rank):
    try:
        os.kill(int((folder / f"rank{rank}").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_torchrun_prints_and_writes_once(tmp_path, processes):
    kind = ("--parallel", "fsdp2", "--weights", "weights.pt")
    job = start(tmp_path, *TORCHRUN, *TRAIN, *kind)
    processes.append(job)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    titles, *epochs, last, written = out.splitlines()
    assert titles.split()[:2] == ["epoch", "loss"]
    assert [line.split()[0] for line in epochs] == ["1", "2"]
    assert re.fullmatch(r"sobolev, seed 0: ok, test error \d+\.\d\d %", last)
    assert written == "weights: weights.pt"
    assert torch.load(tmp_path / "weights.pt")["0.weight"].shape == (7, 1, 3, 3)
    assert len(list(tmp_path.glob("rank?"))) == 2


def test_the_ranks_part_before_the_first_one_writes(tmp_path, monkeypatch):
    """None leaves a group that another is still in, and none waits for the file."""
    connected = []
    monkeypatch.setattr("cdgrad.commands.train._save", lambda *_: connected.append(dist.is_initialized()))
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **free_address()}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "study.toml").write_text(SPEC.format(model="small-cnn", schedule=""))
    weights = ["--parallel", "ddp", "--weights", str(tmp_path / "weights.pt")]
    assert cli.main(["train", str(tmp_path / "study.toml"), *weights]) == 0
    assert connected == [False]


def test_killing_a_rank_ends_the_job(tmp_path, processes):
    job = start(tmp_path, *TORCHRUN, *TRAIN, "--parallel", "ddp", epochs=10**6)
    processes.append(job)
    killed = kill_rank_1_in_the_middle(tmp_path, job)
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert time.monotonic() - killed < 45
    assert gone(tmp_path, 0)


def test_a_rank_that_loses_the_others_says_so(tmp_path, processes):
    """Without torchrun, which ends all ranks itself: a rank that waits in a collective ends, too."""
    address = free_address()
    for rank in "01":
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **address}
        processes.append(start(tmp_path, *TRAIN, "--parallel", "fsdp2", epochs=10**6, **where))
    kill_rank_1_in_the_middle(tmp_path, processes[0])
    _, err = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    line = r"^cdgrad: rank 0 lost its connection to the other ranks and ends \(.+\); see .* start all of them"
    assert re.search(line, err, re.MULTILINE), err


@pytest.mark.parametrize(
    ("arguments", "processes", "message"),
    [
        (["--parallel", "ddp"], None, "RANK is missing; start it with torchrun --nproc-per-node 2"),
        ([], "2", "torchrun started 2 processes, which would all execute the same run; add --parallel ddp"),
    ],
)
def test_a_flag_without_its_processes_is_refused_and_the_reverse(
    arguments, processes, message, monkeypatch, capsys
):
    monkeypatch.delenv("RANK", raising=False)
    if processes:
        monkeypatch.setenv("WORLD_SIZE", processes)
    assert cli.main(["train", "quickstart", *arguments]) == 1
    assert message in capsys.readouterr().err

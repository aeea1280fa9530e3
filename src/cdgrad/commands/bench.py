"""``cdgrad bench``: time the operator on this machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from cdgrad.bench.shapes import NETWORKS
from cdgrad.commands.arguments import UsageError, check_new_file, count, failed, write_new_file

HELP = "time the operator on this machine"
DESCRIPTION = (
    "Time every metric and backend on the convolution weights of common networks, relative to an "
    "in-place multiplication of the same tensors; also optimizer steps, other smoothing methods and "
    "whole training steps."
)

PEERS = ["resnet18-imagenet"]
# What has an effect on one kind of device only, with the defaults.
ON_CPU = {"networks": list(NETWORKS), "rounds": 21, "peers": PEERS, "no_steps": False, "no_jax": False}
ON_GPU = {"seconds": 120, "rehearse": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cdgrad bench``."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record to FILE, as JSON")
    parser.add_argument(
        "--networks",
        nargs="*",
        choices=NETWORKS,
        metavar="NETWORK",
        default=ON_CPU["networks"],
        help=f"networks to time: {', '.join(NETWORKS)} (default: all of them)",
    )
    parser.add_argument(
        "--rounds",
        type=count,
        metavar="N",
        default=ON_CPU["rounds"],
        help="timed repetitions per candidate (default: 21)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=NETWORKS,
        metavar="NETWORK",
        default=PEERS,
        help="networks on which optimizer steps and other smoothing methods are timed, too "
        "(default: resnet18-imagenet; Muon is slow)",
    )
    parser.add_argument("--no-steps", action="store_true", help="skip whole training steps")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: run the GPU benchmark instead (kernels, training steps, the study's loop), limited by "
        "--seconds; the other options of the CPU's have no effect there and are refused (default: cpu)",
    )
    parser.add_argument(
        "--seconds",
        type=count,
        metavar="N",
        default=ON_GPU["seconds"],
        help="time limit in seconds with --device cuda (default: 120)",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="with --device cuda: execute every part on the CPU with tiny sizes, without measuring; it may "
        "take ten times --seconds",
    )
    parser.add_argument("--no-jax", action="store_true", help="skip the operator in JAX")


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, and write the record."""
    _refuse_what_has_no_effect(options)
    if options.out:
        check_new_file(options.out, "--out")
    if options.device == "cuda":
        return _run_on_gpu(options)
    from cdgrad.bench import measure
    from cdgrad.bench.page import tables

    record = measure.record(options)
    print(tables(record), flush=True)
    if options.out:
        content = (json.dumps(record, indent=1) + "\n").encode()
        print(f"record: {write_new_file(options.out, content)}", file=sys.stderr)
    return 0


def _refuse_what_has_no_effect(options: argparse.Namespace) -> None:
    other, needed = (ON_CPU, "cpu") if options.device == "cuda" else (ON_GPU, "cuda")
    for name, default in other.items():
        if getattr(options, name) != default:
            raise UsageError(f"--{name.replace('_', '-')} needs --device {needed}")
    absent = [name for name in options.peers if name not in options.networks]
    if absent and options.peers != PEERS:
        raise UsageError(f"--peers {' '.join(absent)}: not among --networks; name them there, too")


def _run_on_gpu(options: argparse.Namespace) -> int:
    """Measure on a GPU, or rehearse; the record is written after every item."""
    begun = time.perf_counter()
    if find_spec("triton") is None:
        return failed(1, "Triton is not installed; the GPU kernels need it")
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # Both are read when Triton is imported. A cache of its own, so that compilation is measured.
        os.environ["TRITON_CACHE_DIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        if options.rehearse:
            os.environ["TRITON_INTERPRET"] = "1"
        from cdgrad.bench.gpu.processes import start_server

        start_server()
        return _measure_on_gpu(options, begun)


@contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """By default Python would end at once and leave other processes behind, some of them stopped."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure_on_gpu(options: argparse.Namespace, begun: float) -> int:
    import torch

    from cdgrad.bench.gpu.record import record
    from cdgrad.bench.gpu.setup import Setup
    from cdgrad.bench.page import gpu_tables
    from cdgrad.bench.records import GpuRecord

    if not options.rehearse and not torch.cuda.is_available():
        return failed(1, "PyTorch finds no CUDA device; --rehearse runs the benchmark on the CPU")
    written: list[Path] = []

    def write(measured: GpuRecord) -> None:
        if options.out:
            content = (json.dumps(measured, indent=1) + "\n").encode()
            written[:] = [
                write_new_file(options.out, content) if not written else _rewrite(written[0], content)
            ]

    setup = Setup(torch.device("cpu" if options.rehearse else "cuda"), options.rehearse)
    measured = record(setup, options.seconds, write, begun)
    print(gpu_tables(measured), flush=True)
    for path in written:
        print(f"record: {path}", file=sys.stderr)
    errors = [name for name, section in measured["sections"].items() if section["errors"]]
    return failed(1, f"items of {', '.join(errors)} failed; the record contains the reasons") if errors else 0


def _rewrite(file: Path, content: bytes) -> Path:
    from cdgrad.study.files import replace

    replace(file, content)
    return file

"""``cdgrad bench``: time the operator on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cdgrad.bench.shapes import NETWORKS
from cdgrad.commands.arguments import check_new_file, count, write_new_file

HELP = "time the operator on this machine"
DESCRIPTION = (
    "Time every metric and backend on the convolution weights of common networks, relative to an "
    "in-place multiplication of the same tensors; also optimizer steps, other smoothing methods and "
    "whole training steps."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cdgrad bench``."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record to FILE, as JSON")
    parser.add_argument(
        "--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="default: all of them"
    )
    parser.add_argument(
        "--rounds", type=count, default=21, help="timed repetitions per candidate (default: 21)"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=NETWORKS,
        default=["resnet18"],
        help="networks on which optimizer steps and other smoothing methods are timed, too "
        "(default: resnet18; Muon is slow)",
    )
    parser.add_argument("--no-steps", action="store_true", help="leave out whole training steps")
    parser.add_argument("--no-jax", action="store_true", help="leave out the operator in JAX")


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, and write the record."""
    if options.out:
        check_new_file(options.out, "--out")
    from cdgrad.bench import measure
    from cdgrad.bench.page import tables

    record = measure.record(options)
    print(tables(record), flush=True)
    if options.out:
        content = (json.dumps(record, indent=1) + "\n").encode()
        print(f"record: {write_new_file(options.out, content)}", file=sys.stderr)
    return 0

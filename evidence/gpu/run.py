"""Run the next unfinished specification of this folder for a given time; see README.md beside this file.

Needs the repository, a folder of data, torch, numpy, scipy, pyarrow, pillow and matplotlib: not `datasets`,
because the data are Parquet files named by their split, nor `optuna`, because the specifications list their
trials, nor numba, because a GPU has kernels of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]  # worker processes inherit it


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and run."""
    from evidence.gpu import visit

    parser = argparse.ArgumentParser(description="Run the next unfinished specification for a given time.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="folder that holds cifar10-jpeg")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where NAME.parquet is written")
    parser.add_argument("--seconds", type=float, default=480, help="wall time of the command (default: 480)")
    parser.add_argument("--only", choices=visit.QUEUE, help="this specification, not the next unfinished")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--workers", type=int, help="runs at once (default: the specification's)")
    parser.add_argument("--commit", help="commit to record where the code is no git checkout")
    parser.add_argument(
        "--rehearse", action="store_true", help="1 %% of the images and 1 epoch, in NAME-rehearsal.parquet"
    )
    return visit.run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())

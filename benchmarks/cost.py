"""Measure what the operator costs: python benchmarks/cost.py [cdgrad bench options]

Writes results/cost.json beside this file. ``make pages`` computes the tables of docs/cost.md from it, and the
docs' build draws its figure.
"""

import argparse
import json
from pathlib import Path

from cdgrad.bench import measure
from cdgrad.bench.page import tables
from cdgrad.commands import bench

RECORD = Path(__file__).parent / "results/cost.json"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    bench.add_arguments(parser)
    args = parser.parse_args()
    record = measure.record(args)
    print(tables(record))
    (args.out or RECORD).write_text(json.dumps(record, indent=1) + "\n")
    print("now run make pages")

"""Measure what the operator costs: python benchmarks/cost.py [--update] [cdgrad bench options]

Writes results/cost.json beside this file. ``make pages`` computes the tables of docs/cost.md from it, and the
docs' build draws its figure. With --update only the measured networks are replaced in the file: the
floor of each is measured beside it, so they need not be measured together.
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
    parser.add_argument("--update", action="store_true", help="replace only the networks that are measured")
    bench.add_arguments(parser)
    args = parser.parse_args()
    record, path = measure.record(args), args.out or RECORD
    print(tables(record))
    if args.update:
        earlier = json.loads(path.read_text())
        if earlier["machine"] != record["machine"]:
            parser.error(f"{path} is of another machine or other versions; measure all of it")
        record = {**earlier, "networks": {**earlier["networks"], **record["networks"]}}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print("now run make pages")

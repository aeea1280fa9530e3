"""Measure what a second worker is worth: python benchmarks/workers.py

Executes the runs of the quickstart with one worker and with two, alternately, from nothing each time, so that
starting the workers, some seconds each, is in it; and once for four times as many seeds, where it counts
less. Writes results/workers.json beside this file.
"""

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from cdgrad.study.records.environment import environment
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import load

STUDY = "quickstart"
ROUNDS = {10: 3, 40: 1}  # by the number of seeds


def seconds(seeds, workers):
    study = replace(load(STUDY), seeds=tuple(range(seeds)))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runs = run_study(study, Path(folder), workers)
        took = time.perf_counter() - start
    assert all(run.status == "ok" for run in runs)
    print(f"{workers} workers: {len(runs)} runs in {took:.1f} s", flush=True)
    return round(took, 2)


def row(seeds, rounds):
    times = [[seconds(seeds, workers) for workers in (1, 2)] for _ in range(rounds)]
    ratio = statistics.median(one / two for one, two in times)
    return {"seeds": seeds, "seconds": times, "ratio": round(ratio, 3)}


def main():
    record = {
        "what": "wall time of a study with one worker over that with two, start included",
        "study": STUDY,
        "rows": [row(*each) for each in ROUNDS.items()],
        "device": environment()["cpu"],
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    (Path(__file__).parent / "results" / "workers.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

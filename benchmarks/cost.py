"""Measure what the operator costs, and show it: python benchmarks/cost.py [cdgrad bench options]

Writes results/cost.json beside this file, and from it the tables and the plot of docs/cost.md. With
--render, only the latter, from the record that is there.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cdgrad.bench import measure
from cdgrad.bench.page import tables
from cdgrad.commands.bench import add_arguments

HERE = Path(__file__).parent
RECORD = HERE / "results/cost.json"
PAGE = HERE.parent / "docs/cost.md"


def render():
    record = json.loads(RECORD.read_text())
    section = f"<!-- cost:begin -->\n{tables(record)}<!-- cost:end -->"
    page = re.sub(r"<!-- cost:begin -->.*<!-- cost:end -->", lambda _: section, PAGE.read_text(), flags=re.S)
    PAGE.write_text(page)
    plot(record, PAGE.with_suffix(".svg"))


def plot(record, path):
    """Cold time over the floor, a group of bars per network."""
    networks = record["networks"]
    metrics = list(next(iter(networks.values()))["chosen"])
    width = 0.8 / len(metrics)
    # Text stays text, and the same record gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cdgrad"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, metric in enumerate(metrics):
            names = [f"{metric} | {network['chosen'][metric]}" for network in networks.values()]
            ratios = [
                row["cold_over_floor"]
                for name, network in zip(names, networks.values(), strict=True)
                for row in network["rows"]
                if row["name"] == name
            ]
            places = [k + (i - (len(metrics) - 1) / 2) * width for k in range(len(networks))]
            axes.bar(places, ratios, width, label=metric)
        axes.set_xticks(range(len(networks)), list(networks), rotation=20)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel("time over the floor, cold")
        figure.legend(loc="outside upper center", fontsize="small", ncols=3)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:] != ["--render"]:
        parser = argparse.ArgumentParser(description=__doc__)
        add_arguments(parser)
        args = parser.parse_args()
        record = measure.record(args)
        print(tables(record))
        (args.out or RECORD).write_text(json.dumps(record, indent=1) + "\n")
    render()

"""The runs of a study, their time and the effects they could detect: known before the first run.

All but the timed epoch follows from the specification, the data and the recorded runs.
"""

from __future__ import annotations

import heapq
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cdgrad.study import StudyError
from cdgrad.study.plan import Plan
from cdgrad.study.records import Run
from cdgrad.study.report.document import Document, Section, Table
from cdgrad.study.report.tables import FIXED, at_least, pairs_needed, true_differences
from cdgrad.study.report.tuning_tables import search_space
from cdgrad.study.report.words import duration, words_of
from cdgrad.study.spec import Setting, Spec
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.sequential import fewest_pairs

_LONG = 60.0  # seconds of a first epoch, after which no second one is timed
_SHORT = 1.0  # seconds of an epoch, beside which the rest of a run counts
_SIZES = (0.1, 0.2, 0.5, 1.0)  # true differences in points, for the number of seeds needed


@dataclass(frozen=True)
class Seconds:
    """Expected seconds of a run, by cell, and where they come from.

    Attributes:
        start: seconds until a new worker trains: its process, imports, data and compilation; None where that
            was not measured.
    """

    by_cell: Mapping[str, float]
    source: str
    start: float | None = None


def recorded_seconds(spec: Spec, runs: Sequence[Run]) -> Seconds | None:
    """The mean duration of the finished runs of each cell; None where a cell has none yet."""
    seconds = {
        cell: [run.seconds for run in runs if run.cell == cell and run.status == "ok"] for cell in spec.cells
    }
    if not all(seconds.values()):
        return None
    means = {cell: math.fsum(values) / len(values) for cell, values in seconds.items()}
    return Seconds(means, f"the mean of {sum(map(len, seconds.values()))} recorded runs")


def start_seconds() -> float | None:
    """How long a new process of this machine takes until it can train; None where that fails."""
    clock = time.perf_counter()
    # Without the working directory, as a worker: a file of the user's there may be called random.py.
    command = [sys.executable, "-P", "-c", "import cdgrad.study.train.loop, torch._dynamo"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    return None if ended.returncode else time.perf_counter() - clock


def timed_seconds(spec: Spec, device: str) -> Seconds:
    """An epoch of the baseline in each cell, times its epochs; validation images only. Takes two epochs.

    What the first one takes longer is imports, data and compilation, which each worker spends once. A long
    first epoch is the only one. Short ones are timed in a second run, because building a network and
    evaluating it then takes a part of each run's time.

    Raises:
        StudyError: the data, the network or the optimizer cannot be used.
        ValueError: the study has an `entry`, whose epochs cannot be told apart from outside.
    """
    if spec.entry:
        raise ValueError("an entry trains in its own code: no single epoch can be timed")
    means: dict[str, float] = {}
    start = 0.0
    for cell in spec.cells:
        setting = spec.setting(cell, spec.baseline, trial=True)
        _, _, schedule, _ = setting.tables()
        twice = replace(setting, schedule=replace(schedule, epochs=2, warmup=0))
        begin, first, *second = _ends(twice, device)
        epoch, besides = second[0] - first if second else first - begin, 0.0
        start = max(start, first - begin - epoch)
        if epoch < _SHORT:
            begin, first, last = _ends(twice, device)
            epoch = last - first
            besides = max(0.0, time.perf_counter() - begin - 2 * epoch)
        means[cell] = besides + epoch * schedule.epochs
    return Seconds(means, "one timed epoch of the baseline", start)


class _LongEpochError(Exception):
    """The first epoch took so long that what came before it does not matter."""


def _ends(setting: Setting, device: str) -> list[float]:
    """When a run begins and when its epochs end; only the first one where that is long."""
    ends = [time.perf_counter()]

    import torch

    from cdgrad.study.train import train

    def on_epoch(epoch: int, measured: Mapping[str, float]) -> None:
        ends.append(time.perf_counter())
        if ends[1] - ends[0] > _LONG:
            raise _LongEpochError

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has
    try:
        with suppress(_LongEpochError):
            train(setting, 0, on_epoch, device=device)
    finally:
        torch.set_num_threads(threads)
    return ends


def preview(
    plan: Plan,
    runs: Sequence[Run],
    *,
    workers: int,
    seconds: Seconds | None,
    sd: float | None,
    needs_data: bool = False,
) -> Document:
    """The plan of a study as a document.

    Args:
        plan: the study's.
        runs: what is recorded already.
        workers: number of parallel runs.
        seconds: expected seconds of a run; None where they are not known.
        sd: standard deviation of a paired difference in points, for the minimum detectable difference;
            None: that of the recorded pairs, where there are any.
        needs_data: refuse data that this machine cannot read; otherwise a remark says so.

    Raises:
        StudyError: the data cannot be read, and `needs_data`.
    """
    spec = plan.spec
    remarks = list(warnings(spec))
    try:
        splits = list(_splits(spec))
    except StudyError as error:  # the workers of a cluster may have what this machine lacks
        if needs_data:
            raise
        splits = []
        remarks.append(f"The data cannot be read on this machine: {error}")
    tables = [_runs(plan), *splits, *_time(plan, workers, seconds)]
    tables += [*_power(spec, runs, sd), *search_space(spec)]
    remaining, most = len(plan.keys) - plan.done, "at most " * bool(spec.until)
    return Document(
        title=f"Plan of {spec.title}",
        summary=f"{most}{len(plan.keys)} runs, {plan.done} of them recorded in {plan.place}, "
        f"{remaining} remain",
        verdicts=[],
        remarks=remarks,
        sections=[Section("", (), tables)],
        environment=[],
        spec=spec.text,
    )


def warnings(spec: Spec) -> Iterator[str]:
    """Why the study could not show anything, or less than it seems; empty for a sound one."""
    pairs, comparisons = len(spec.seeds), spec.tests
    if not comparisons:
        yield f"{spec.baseline} is the only arm: there is nothing to compare; add another arm."
    elif pairs < 2:
        yield "With 1 seed no interval and no p can be computed: use at least 6 seeds."
    elif spec.until and pairs < fewest_pairs():
        yield (
            f"With at most {pairs} seeds there is no anytime-valid interval, and nothing can be decided: set "
            f"seeds.most to at least {fewest_pairs()}."
        )
    elif (smallest := _smallest_p(spec)) >= 1 - stats.LEVEL:
        enough = stats.fewest_tested_pairs(comparisons)
        remedy = f"Use at least {enough} seeds." if enough else "Compare fewer arms in fewer cells."
        yield (
            f"With {pairs} seeds and {comparisons} comparison{'s' * (comparisons > 1)} no p after Holm's "
            f"correction can be below {smallest:.2g}: no difference, however large, can be shown. {remedy}"
        )
    if spec.replicates == 2:
        yield "With 2 searches the interval is mean +- 12.7 standard errors: use at least 3 searches."
    if spec.tuning and spec.tuning.trials < 3:
        trials = spec.tuning.trials
        yield f"A search of {trials} trial{'s' * (trials > 1)} hardly searches: use at least 3 trials."
    for arm, options in spec.arms.items():
        changed = options.metric != "none" and options.rescale == "none" and not options.optimizer
        changed = changed and options.lr_factor == 1
        if changed and not spec.entry and (spec.tuning is None or options.tuning != "own"):
            yield (
                f"{arm} has the baseline's learning rate, but its metric changes the size of the step: a "
                f'difference may be due to that alone. Tune the arm, or set rescale = "norm".'
            )


def _smallest_p(spec: Spec) -> float:
    """The smallest p that Holm's correction leaves the sign-flip test; 0 where another test is used."""
    if spec.replicates > 1 or spec.until:
        return 0.0
    return min(1.0, stats.smallest_p(len(spec.seeds)) * spec.tests)


def _runs(plan: Plan) -> Table:
    spec = plan.spec
    final = len(spec.cells) * len(spec.arms) * len(spec.seeds)
    rows = [("final runs", f"{len(spec.cells)} x {len(spec.arms)} x {len(spec.seeds)}", str(final))]
    if spec.tuning:
        searched = (len(plan.keys) - final) // (len(spec.cells) * spec.tuning.trials * len(spec.tuning.seeds))
        product = f"{len(spec.cells)} x {searched} x {spec.tuning.trials} x {len(spec.tuning.seeds)}"
        rows.insert(0, ("trials", product, str(len(plan.keys) - final)))
    note = "final runs: cells x arms x seeds; trials: cells x tuned arms x trials x tuning seeds"
    note = note if spec.tuning else note.partition(";")[0]
    return Table("Runs", ("kind", "product", "runs"), rows, note, align="llr")


def _splits(spec: Spec) -> Iterator[Table]:
    """Number of images in each split, and where the test images come from."""
    if spec.entry:
        return
    from cdgrad.study import data  # imports torch

    rows: list[Sequence[str]] = []
    for cell, tables in spec.cells.items():
        task = spec.setting(cell, spec.baseline).tables()[0]
        drawn = data.load(task, spec.seeds[0])
        counts = [f"{len(split):,}" for split in (drawn.train, drawn.validation, drawn.test)]
        official = "official" if data.has_test_split(task) else "drawn"
        step = 100 / len(drawn.test if spec.evaluate == "test" else drawn.validation)
        rows.append((cell or str(tables["task"]["data"]), *counts, official, f"{step:.3g}"))
    yield Table(
        "Images in each split",
        ("cell", "train", "validation", "test", "test split", "one image"),
        rows,
        "test split: the data set's own, or drawn by each seed from all images; one image: points of "
        f"{spec.measure.name} that one image of the {spec.evaluate} split is worth",
        align="lrrrrr",
    )


def _time(plan: Plan, workers: int, seconds: Seconds | None) -> Iterator[Table]:
    remaining = [key for key in plan.keys if not plan.is_done(key)]
    if not remaining:
        return
    if seconds is None:
        rows = [("not known before the first run", "-", "-")]
        source = (
            f"{plan.spec.entry} trains in its own code, of which no epoch can be timed; the estimate will "
            "come from recorded runs"
            if plan.spec.entry
            else "cdgrad plan times an epoch of the built-in training loop"
        )
    else:
        each = [seconds.by_cell[key[0]] for key in remaining]
        until = makespan(each, workers, seconds.start or 0.0)
        rows = [
            (
                "at most " * bool(plan.spec.until) + duration(until),
                str(workers),
                duration(math.fsum(each) / len(each)),
            )
        ]
        start = (
            "without the start of the workers"
            if seconds.start is None
            else f"and from {duration(seconds.start)} for the start of a worker"
        )
        source = f"estimated from {seconds.source}, {start}"
    yield Table("Time for the remaining runs", ("time", "workers", "per run"), rows, source, align="lrr")


def makespan(seconds: Sequence[float], workers: int, start: float) -> float:
    """When the last of some runs ends: `workers` begin at `start`, and whoever is free takes the next run."""
    free = [start] * min(workers, len(seconds))
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _power(spec: Spec, runs: Sequence[Run], sd: float | None) -> Iterator[Table]:
    """What the seeds can show: the smallest p, the minimum detectable difference, and seeds needed."""
    several = spec.replicates > 1
    pairs, units = (spec.replicates, "searches") if several else (len(spec.seeds), "seeds")
    sampled = "the mean difference of a search" if several else "a paired difference"
    if not spec.tests or pairs < 2:
        return
    compared = Results.of(spec, runs).comparisons.values()
    recorded = [c.comparison.sd for c in compared if c.comparison.pairs > 2 and c.comparison.sd > 0]
    source = "as stated"
    if sd is None and recorded:
        sd, source = max(recorded), "the largest of the recorded comparisons"
    w = words_of(spec, sd)
    sizes = true_differences(w, math.nan if sd is None else sd, _SIZES)
    row = [f"{pairs}", f"{spec.tests}", f"{smallest:.2g}" if (smallest := _smallest_p(spec)) else "-"]
    if sd is None:
        row += ["-"] * (2 + len(sizes))
        source = "not known yet; set it with --sd"
    else:
        needed = (pairs_needed(spec, size, sd) for size in sizes)
        row += [w.number(sd), w.number(stats.detectable_difference(pairs, sd)), *needed]
    unit = f" in {w.of_difference}" if w.of_difference else ""
    needs = f"; for x: {units} needed to detect {f'x {w.of_difference}'.rstrip()}{at_least(spec)}" * bool(
        sizes
    )
    yield Table(
        f"Statistical power of {pairs} {units}",
        (units, "comparisons", "smallest p", "SD", "MDD", *(f"for {size:g}" for size in sizes)),
        [row],
        f"smallest p: after Holm's correction; SD: of {sampled}{unit}, {source}; MDD: minimum "
        f"detectable difference, detected in {100 * stats.POWER:.0f} % of studies by a two-sided t-test on "
        f"the paired differences at 5 %, uncorrected{needs}" + FIXED * bool(spec.until),
        align="rrrrr" + "r" * len(sizes),
    )

"""One visit to a machine with a GPU: resume a study from its Parquet file, and write it anew.

The state between two visits is one Parquet file a study, in ``evidence/gpu/records`` or in the output folder.
Runs start only while the longest one so far would still end in time, seed by seed, so that whatever is
recorded is a paired comparison of all arms. Interrupted runs are not recorded.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.parquet import from_parquet, to_parquet
from cdgrad.study.records.run import Run
from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.run.engine import RunDone
from cdgrad.study.run.local_engine import run_all, visible_gpus
from cdgrad.study.spec import Spec, load
from cdgrad.study.statistics.results import Results

HERE = Path(__file__).resolve().parent
QUEUE = ("resnet20-512", "vgg11-512", "resnet20-128", "vgg11-128")  # the most informative per second first
MOST_BYTES = 16 * 2**20
_RESERVE = 10.0  # seconds to end workers and to write
_SLACK = 1.2  # a run may take so much longer than the longest one


def run(options: Namespace) -> int:
    """Run the next unfinished specification; returns the exit status."""
    deadline = time.monotonic() + options.seconds - _RESERVE
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with _workplace(Path(options.data).resolve()):
        try:
            spec, runs = _next(options, out)
        except StudyError as error:
            print(f"evidence/gpu: {error}", file=sys.stderr)
            return 1
        if spec is None:
            print("evidence/gpu: every specification is finished", file=sys.stderr)
            return 0
        file = out / f"{spec.name}.parquet"
        all_runs = _execute(spec, runs, options, deadline, lambda now: _write(now, file, options.commit))
    results = Results.of(spec, all_runs)
    print(f"{spec.name}: {results.count} of {results.total} final runs; {_size(file)}")
    for cell in spec.cells:
        print("\n".join(verdicts(results, cell)))
    failed = [run for run in all_runs if run.status == "failed"]
    if failed:
        print(f"evidence/gpu: {len(failed)} runs failed, the first: {failed[0].message}", file=sys.stderr)
    return bool(failed)


def specification(name: str, *, rehearse: bool = False) -> Spec:
    """A specification of the queue; for a rehearsal with 1 % of its images, 1 epoch, float32."""
    spec = load(str(HERE / f"{name}.toml"))
    if not rehearse:
        return spec
    (tables,) = spec.cells.values()
    fewer = {"train": 450, "validation": 50, "test": 100}
    short = {"epochs": 1, "precision": "float32"}
    small = {"task": {**tables["task"], **fewer}, "schedule": {**tables["schedule"], **short}}
    return replace(spec, name=f"{name}-rehearsal", seeds=spec.seeds[:2], cells={"": {**tables, **small}})


def _next(options: Namespace, out: Path) -> tuple[Spec | None, list[Run]]:
    """The first specification that is not finished, and its recorded runs."""
    for name in [options.only] if options.only else QUEUE:
        spec = specification(name, rehearse=options.rehearse)
        files = [out / f"{spec.name}.parquet", HERE / "records" / f"{spec.name}.parquet"]
        recorded = [file for file in files if file.is_file()]
        runs = from_parquet(recorded[0]) if recorded else []
        plan = Plan(spec, runs, spec.name)
        if plan.done < plan.total:
            return spec, runs
    return None, []


def _execute(
    spec: Spec, runs: list[Run], options: Namespace, deadline: float, write: Callable[[list[Run]], None]
) -> list[Run]:
    """The recorded runs and those made until the deadline; `write` is given them after every run."""
    from cdgrad.study import data

    by_key = {run.key: run for run in runs if run.status != "failed"}
    plan = Plan(spec, by_key.values(), spec.name)
    longest = [max((run.seconds for run in by_key.values()), default=0.0)]

    def take() -> Job | None:
        late = time.monotonic() + _SLACK * longest[0] > deadline
        return None if late else plan.take()

    def work() -> None:
        # The data once, before the workers need them; within the time, because it decodes all images.
        data.load(spec.setting("", spec.baseline).tables()[0], spec.seeds[0])
        gpus = visible_gpus() if options.device == "cuda" else ()
        with closing(run_all(take, options.workers or spec.workers, gpus=gpus)) as events:
            for event in events:
                if isinstance(event, RunDone):
                    plan.add(event.run)
                    by_key[event.run.key] = event.run
                    longest[0] = max(longest[0], event.run.seconds)
                    write([*by_key.values()])
                    print(f"{plan.done}/{plan.total} {_line(event.run)}", file=sys.stderr, flush=True)

    with _alarm(deadline):
        try:
            work()
        except _TimeIsOver:
            if by_key:
                write([*by_key.values()])  # the last one may have been interrupted
            print("evidence/gpu: the time is over; unfinished runs are not recorded", file=sys.stderr)
    return [*by_key.values()]


def _line(run: Run) -> str:
    kind = "final" if run.trial is None else f"trial {run.trial}"
    result = run.message if run.error is None else f"{run.error:.2f} %"
    return f"{run.arm}, {kind}, seed {run.seed}: {run.status}, {result}, {run.seconds:.1f} s"


def _write(runs: Iterable[Run], file: Path, commit: str | None) -> None:
    """Write the file in one piece, with the commit where a run does not know it."""
    named = [
        run if run.environment.get("commit") or not commit
        else replace(run, environment={**run.environment, "commit": commit})
        for run in runs
    ]  # fmt: skip
    draft = file.with_suffix(".part")
    to_parquet(named, draft)
    os.replace(draft, file)


def _size(file: Path) -> str:
    size = file.stat().st_size if file.exists() else 0
    over = f", more than the {MOST_BYTES:,} that were allowed" if size > MOST_BYTES else ""
    return f"{file.name} has {size:,} bytes{over}"


@contextmanager
def _workplace(data: Path):
    """A temporary working directory in which the specifications' path to the data is right, with a cache."""
    if not (data / "cifar10-jpeg").is_dir():
        raise SystemExit(
            f"evidence/gpu: {data} holds no folder cifar10-jpeg; name the one that does by --data"
        )
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").symlink_to(data)
        os.environ.setdefault("CDGRAD_CACHE", str(Path(folder, "cache")))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


class _TimeIsOver(BaseException):
    """No `Exception`: whoever decodes an image takes any of those for a fault of the image."""


@contextmanager
def _alarm(deadline: float):
    """Raise `_TimeIsOver` in the main thread at the deadline."""

    def ring(*_: object) -> None:
        raise _TimeIsOver

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Whether the runs of a study were executed alike: on which machine, with which software, images and code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cdgrad.study.records.run import Run
from cdgrad.study.report.words import in_cell
from cdgrad.study.statistics.results import Results

_ENVIRONMENT = ("torch", "numpy", "numba", "cdgrad", "commit", "python", "device", "cpu", "threads")


def environments(results: Results) -> dict[str, list[str]]:
    """What a repetition needs; several values where final runs differ in it."""
    software = _software(_finished(results.final_runs) or _finished(results.trial_runs))
    packages = sorted({key for used in software for key in used} - {*_ENVIRONMENT})
    values = {key: {used[key] for used in software if key in used} for key in (*_ENVIRONMENT, *packages)}
    return {key: sorted(found) for key, found in values.items() if found - {"None"}}


def environment_remarks(results: Results) -> Iterator[str]:
    """All that applies to `results`."""
    yield from _environment(results)
    yield from _images(results)
    yield from _code(results)


def _finished(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run.status != "failed"]


def _software(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What a repetition of each run needs, with the packages that its arm uses.

    A package is "absent" where the same modules of the user used it in another run: they tried to import it.
    """
    used: dict[tuple[str, str, str], set[str]] = {}
    for run in runs:
        used.setdefault(_modules(run), set()).update(run.environment.get("packages", ()))
    found: list[dict[str, str]] = []
    for run in runs:
        own: dict[str, str] | None = run.environment.get("packages")
        packages = () if own is None else used[_modules(run)]  # records of former versions have none
        versions = {package: (own or {}).get(package, "absent") for package in packages}
        found.append({key: str(run.environment.get(key)) for key in _ENVIRONMENT} | versions)
    return found


def _modules(run: Run) -> tuple[str, str, str]:
    """Equal for runs with the same modules of the user, which import the same packages if they can."""
    return run.cell, run.arm, str(run.environment.get("code"))


def _environment(results: Results) -> Iterator[str]:
    # Training is chaotic: a changed rounding error moves a single run by as much as a changed seed.
    runs = _finished(results.final_runs)
    software = _software(runs)
    for key, values in environments(results).items():
        if len(values) < 2:
            continue
        of_seed: dict[tuple[str, int], set[str]] = {}
        for run, used in zip(runs, software, strict=True):
            if key in used:
                of_seed.setdefault((run.cell, run.seed), set()).add(used[key])
        alike = of_seed and all(len(found) == 1 for found in of_seed.values())
        so = (
            "but those of one seed do not: the paired differences are within each of them"
            if alike
            else "so arms may differ in more than their setting"
        )
        yield f"The runs differ in {key} ({', '.join(values)}), {so}."


def _images(results: Results) -> Iterator[str]:
    """Whether a folder of images changed between the runs of a cell; cells may differ in their data."""
    for cell in results.spec.cells:
        groups = [by_seed for (c, _), by_seed in results.finished.items() if c == cell]
        searches = [search for place, search in results.searches.items() if place.cell == cell]
        groups += [by_seed for search in searches for by_seed in search.runs.values()]
        environments = [run.environment for by_seed in groups for run in by_seed.values()]
        data = sorted({environment["data"] for environment in environments if "data" in environment})
        if len(data) > 1:
            yield (
                f"The runs differ in data{in_cell(cell)} ({', '.join(data)}): the images changed between "
                f"them, and they are not comparable; run the study again with another --out."
            )


def _code(results: Results) -> Iterator[str]:
    """Whether modules of the user changed between the runs."""
    runs = _finished([*results.final_runs, *results.trial_runs])
    codes = [run.environment.get("code", {}) for run in runs]
    files = sorted({name for code in codes for name in code})
    changed = [name for name in files if len({code[name] for code in codes if name in code}) > 1]
    if changed:
        yield (
            f"The code changed between the runs ({', '.join(changed)}): they are compared as if it "
            f"were the same."
        )

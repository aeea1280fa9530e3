"""Several studies as one, whose cells are all of theirs: the arms that they share, compared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cdgrad.study import StudyError
from cdgrad.study.spec import Spec
from cdgrad.study.statistics.results import Results


def together(studies: Mapping[str, Results]) -> Results:
    """One result of several studies, by their names: their cells are cells of it, named after the study.

    Holm's correction then runs over the comparisons of all of them. Arms of one name keep the options that
    each study gives them. Equivalence is tested where all state the same margin.

    Raises:
        StudyError: their results are of different measures or splits, arms of one name have different
            metrics, they have no comparison in common, their seeds end by different rules, or two cells would
            have one name.
    """
    names, results = list(studies), list(studies.values())
    specs = [study.spec for study in results]
    _check_alike(names, specs)
    first = specs[0]
    shared = {name: arm for name, arm in first.arms.items() if all(name in spec.arms for spec in specs)}
    if len(shared) < 2 or first.reference_arm not in shared:
        arms = ", ".join(shared) or "no arm"
        raise StudyError(
            f"{', '.join(names)} share {arms}; choose studies that share the reference and another arm"
        )
    cells = {
        (name, cell): f"{name} {cell}".rstrip()
        for name, study in studies.items()
        for cell in study.spec.cells
    }
    if len({place.lower() for place in cells.values()}) < len(cells):  # files have their names
        raise StudyError(
            f"{', '.join(names)} have cells of one name, up to letter case; rename a folder of records"
        )
    spec = replace(
        first,
        name=" and ".join(names),
        title=" and ".join(_titles(names, specs)),
        seeds=tuple(dict.fromkeys(seed for spec in specs for seed in spec.seeds)),
        cells={place: studies[name].spec.cells[cell] for (name, cell), place in cells.items()},
        arms={name: replace(arm, tuning="own") for name, arm in shared.items()},
        arms_of_cells={
            place: {arm: replace(studies[name].spec.arms_in(cell)[arm], tuning="own") for arm in shared}
            for (name, cell), place in cells.items()
        },
        tuning=None,
        margin=first.margin if len({spec.margin for spec in specs}) == 1 else 0.0,
        text="\n".join(f"# {name}\n{spec.text}" for name, spec in zip(names, specs, strict=True)),
    )
    finished = {
        (cells[name, cell], arm): {
            seed: replace(run, cell=cells[name, cell]) for seed, run in by_seed.items()
        }
        for name, study in studies.items()
        for (cell, arm), by_seed in study.finished.items()
        if arm in shared
    }
    return Results(spec, [run for by_seed in finished.values() for run in by_seed.values()], finished, {}, [])


def _titles(names: list[str], specs: list[Spec]) -> list[str]:
    """The studies' titles; where two are equal, each with the study's name."""
    titles = [spec.title for spec in specs]
    if len({*titles}) == len(titles):
        return titles
    return [f"{title} ({name})" for name, title in zip(names, titles, strict=True)]


def _check_alike(names: list[str], specs: list[Spec]) -> None:
    """Refuse studies whose numbers or comparisons are of different kinds."""
    first = _kinds(specs[0])
    for name, spec in zip(names, specs, strict=True):
        for kind, value in _kinds(spec).items():
            if kind in first and value != first[kind]:
                raise StudyError(
                    f"{names[0]} and {name} differ in {kind} ({first[kind]} and {value}); report them "
                    "separately"
                )
        if spec.replicates > 1:
            raise StudyError(f"{name} has several searches for each arm's setting; report it separately")


def _kinds(spec: Spec) -> dict[str, object]:
    """What studies must have in common, by its name in messages."""
    measure = spec.measure
    return {
        "what they measure": f"{measure.name}{measure.unit and f', {measure.unit}'}{', %' * measure.percent}",
        "the better direction": measure.direction,
        "the arm that others are compared with": spec.reference_arm,
        "what is compared": "all pairs of arms" if spec.all_pairs else "arms with one",
        "the split": spec.evaluate,
        "seeds.until": spec.until,
        "entry": "an entry" if spec.entry else "none",
        **{f"the metric of {name}": arm.metric for name, arm in spec.arms.items()},
    }

"""A study for a publication: figures as SVG and PDF, tables in LaTeX and Markdown, a methods paragraph,
references, and the runs as CSV and Parquet.

Every sentence and number follows from the specification and the records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.records import csv_text, to_parquet
from cdgrad.study.report import across
from cdgrad.study.report.document import Document, Section, Table
from cdgrad.study.report.references import bibtex, cites
from cdgrad.study.report.remarks import environments, when_tested
from cdgrad.study.report.text import markdown_rows
from cdgrad.study.report.words import counted, enumerated, words
from cdgrad.study.shown import one_line
from cdgrad.study.spec import ERROR, NO_METRIC, Schedule, Setting, Spec
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def write(results: Results, document: Document, folder: Path) -> list[Path]:
    """Write every file into `folder`, which is created; their paths. After an error none is left.

    Raises:
        StudyError: a file of one of the names exists, or the folder cannot be written.
    """
    measure, paragraph = results.spec.measure.name, methods(results)
    texts = {
        "methods.md": paragraph + "\n",
        "methods.tex": latex(paragraph) + "\n",
        "references.bib": bibtex(paragraph),
        "runs.csv": csv_text(results.final_runs, measure),
    }
    if results.searches:
        texts["trials.csv"] = csv_text(results.trial_runs, measure)
    for name, table in table_files(document.sections).items():
        texts[f"tables/{name}.tex"] = latex_table(table)
        texts[f"tables/{name}.md"] = "\n".join([*markdown_rows(table), "", table.note, ""])
    figures = {f"figures/{d.name}.{kind}": d for d in document.figures for kind in ("svg", "pdf")}
    names = [*texts, *figures, "runs.parquet"]
    if existing := [name for name in names if os.path.lexists(folder / name)]:
        raise StudyError(f"{folder / existing[0]} exists already; choose another --to, or move it away")
    written: list[Path] = []
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        contents = chain(
            ((name, text.encode()) for name, text in texts.items()),
            ((name, d.svg() if name.endswith("svg") else d.pdf()) for name, d in figures.items()),
        )
        for name, content in contents:
            with (folder / name).open("xb") as stream:  # never over a file that has just appeared
                written.append(folder / name)
                stream.write(content)
        to_parquet(results.runs, folder / "runs.parquet", measure)
    except BaseException as error:
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StudyError(f"cannot write in {folder}: {error.strerror}; choose another --to") from error
        raise
    return [folder / name for name in names]


def table_files(sections: Sequence[Section]) -> dict[str, Table]:
    """Every table under a name of its own: section and title, the latter up to a comma where that will do."""
    placed = [(section.title, table) for section in sections for table in section.tables]
    short = [_slug(f"{place} {table.title.partition(',')[0]}") for place, table in placed]
    files: dict[str, Table] = {}
    for name, (place, table) in zip(short, placed, strict=True):
        unique = name if short.count(name) == 1 else _slug(f"{place} {table.title}")
        files[unique if unique not in files else f"{unique}-{len(files)}"] = table
    return files


def methods(results: Results) -> str:
    """The methods section as one paragraph, from the specification and the records."""
    return " ".join(
        [
            *_design(results),
            *_arms(results.spec),
            *_settings(results),
            *_budget(results.spec),
            *_tests(results),
            *_software(results),
        ]
    )


def _design(results: Results) -> Iterator[str]:
    spec = results.spec
    reference = spec.reference_arm
    others = [arm for arm in spec.arms if arm != reference]
    compared = f"{enumerated(others)} with {reference}"
    if spec.all_pairs:
        compared = f"all pairs of {enumerated([*spec.arms])}"
    cells = f" in {len(spec.cells)} settings ({', '.join(spec.cells)})" if len(spec.cells) > 1 else ""
    yield (
        f"We {f'compared {compared}' if others else f'trained {reference}'}{cells} over "
        f"{'at most ' * bool(spec.until)}{len(spec.seeds)} {'paired ' * bool(others)}"
        f"seed{'s' * (len(spec.seeds) > 1)}. "
        + (
            "The training function was given the same seeds in all arms."
            if spec.entry
            else "A seed fixes the initialization and the order of the data, alike for all arms."
        )
    )
    if spec.until:
        yield (
            "Seeds were added until every comparison was shown, or its interval was narrower than "
            f"{words(results).amount(spec.until)}."
        )
    if (measure := spec.measure) != ERROR:
        direction = "lower" if measure.direction == "min" else "higher"
        yield f"The measure is {measure.name}{words(results).in_unit}; {direction} values are better."
    if spec.evaluate == "test":
        yield f"The test split was read by the runs {when_tested(results)}."
    else:
        yield (
            "All runs were evaluated on validation data" + "; no test data was read" * (not spec.entry) + "."
        )
    diverged = sum(run.status == "diverged" for runs in results.finished.values() for run in runs.values())
    if diverged:
        are = "it is" if diverged == 1 else "they are"
        yield f"{counted(diverged, 'run')} diverged; {are} included with the value at the end."


def _arms(spec: Spec) -> Iterator[str]:
    """What arms other than the baseline do, apart from their settings."""
    arms = spec.arms.items()
    if directed := [arm for arm, options in arms if options.metric != NO_METRIC]:
        what = "a channel-directed metric" if len(directed) == 1 else "channel-directed metrics"
        yield f"The gradients of {enumerated(directed)} are those in {what} [lao2020channel]."
    if centralized := [arm for arm, options in arms if options.centralize]:
        yield f"The gradients of {enumerated(centralized)} are centralized [yong2020gradient]."
    if rounded := [arm for arm, options in arms if options.rounding != 1]:
        yield (
            f"The steps of {enumerated(rounded)} differ from those of the same setting by rounding errors "
            "only, which shows what rounding alone changes [sun2022numerical]."
        )


def _settings(results: Results) -> Iterator[str]:
    spec = results.spec
    if spec.entry:
        yield f"Each run was executed by the training function {spec.entry}."
        return
    for cell in spec.cells:
        setting = spec.setting(cell, spec.baseline)
        where = f"In {cell}, " if cell else ""
        searched = spec.tuning is not None and "optimizer.lr" in spec.tuning.of(spec.baseline)
        rate = "with a searched initial learning rate"
        if not searched:
            rate = f"at an initial learning rate of {setting.tables()[3].lr:g}"
        yield where + _trained(setting, _counts(results, cell), rate, first=not where)


def _counts(results: Results, cell: str) -> dict[str, str]:
    """The recorded images of each split, where all final runs of a cell have the same number of them."""
    recorded = [run.environment for run in results.runs_in(cell)]
    sizes = [environment["splits"] for environment in recorded if "splits" in environment]
    counts = {role: {size[role] for size in sizes} for role in ("train", "validation", "test")}
    return {role: f"{min(found):,}" for role, found in counts.items() if len(found) == 1}


def _trained(setting: Setting, counts: Mapping[str, str], rate: str, *, first: bool) -> str:
    task, model, schedule, optimizer = setting.tables()
    train, validation, test = (counts.get(k, getattr(task, k)) for k in ("train", "validation", "test"))
    data = f"{train} training, {validation} validation and {test} test images of {task.data}"
    decay = {
        "cosine": "cosine decay",
        "steps": f"a decay by the factor {schedule.step_factor:g} every {schedule.step_epochs} epochs",
        "none": "no decay",
    }
    options = [f"batch size {schedule.batch}", f"{schedule.epochs} epochs", decay[schedule.decay]]
    options += [f"augmentation by {enumerated(task.augment)}"] if task.augment else []
    options += [f"wrong labels for {100 * task.label_noise:g} % of the training images"] * bool(
        task.label_noise
    )
    options += [f"images of {task.size} x {task.size} pixels"] * bool(task.size)
    options += [f"{name} {value}" for name, value in _changed(schedule)]
    options += [f"{key} {value}" for key, value in optimizer.arguments.items()]
    built = [f"{key} {value}" for key, value in model.arguments.items()]
    built += [f"{model.initialization} initialization"] * (model.initialization != "default")
    network = model.name + f" ({', '.join(built)})" * bool(built)
    return (
        f"{'The' if first else 'the'} network {network} was trained on {data} by {optimizer.name} {rate} "
        f"({', '.join(options)})."
    )


def _changed(schedule: Schedule) -> Iterator[tuple[str, object]]:
    """What a schedule sets beyond epochs, batch and decay, and that changes the training."""
    for key in ("warmup", "label_smoothing", "ema", "accumulate", "clip", "precision"):
        value: object = getattr(schedule, key)
        if value != getattr(Schedule, key):
            yield key.replace("_", " "), value


def _budget(spec: Spec) -> Iterator[str]:
    if spec.tuning is None:
        yield "No hyperparameter was searched."
        return
    tuned = [arm for arm, options in spec.arms.items() if options.tuning == "own"]
    seeds = len(spec.tuning.seeds_of(0))
    often = f"{spec.replicates} times independently, " if spec.replicates > 1 else ""
    best = "lowest" if spec.measure.direction == "min" else "highest"
    listed = [arm for arm in tuned if arm in spec.tuning.listed]
    searched = [arm for arm in tuned if arm not in listed]
    source = "of a scrambled Sobol sequence" if searched else "listed in the specification"
    yield (
        f"For each of {enumerated(tuned)}, {often}{counted(spec.tuning.trials, 'trial')} {source} "
        f"{'was' if spec.tuning.trials == 1 else 'were'} executed on {counted(seeds, 'seed')} that no final "
        f"run uses, and the trial with the {best} mean validation {spec.measure.name} was chosen."
    )
    for kind, what in (("baseline", f"used what was chosen for {spec.baseline}"), ("none", "was not tuned")):
        if others := [arm for arm, options in spec.arms.items() if options.tuning == kind]:
            yield f"{enumerated(others)} {what if len(others) == 1 else what.replace('was not', 'were not')}."
    if searched:
        yield "Such a sequence covers the search space evenly [sobol1967distribution]."
        if listed:
            yield f"The trials of {enumerated(listed)} are listed in the specification."
    for arm in searched:
        space = ", ".join(
            f"{key} one of {enumerated([*map(str, d.choices)])}"
            if d.choices
            else f"{key} from {d.low:g} to {d.high:g}{' (logarithmic)' * d.log}"
            for key, d in spec.tuning.of(arm).items()
        )
        yield f"The search space of {arm} was {space}."


def _tests(results: Results) -> Iterator[str]:
    if not results.comparisons:
        return
    count, interval = results.spec.tests, "Student t interval"
    if results.spec.replicates > 1:
        test = "of the t-test that belongs to it, both over the mean differences of the searches"
    elif results.spec.until:
        interval = "anytime-valid interval"
        test = (
            "of the sequential t-test that belongs to it [wang2023anytime], both with a correction for "
            "skewness [hall1992removal]"
        )
    else:
        test = "of a two-sided sign-flip permutation test"
    yield (
        f"We report the mean paired difference with its {100 * stats.LEVEL:.0f} % {interval}, and p {test}"
        + (f", corrected by Holm's method over {count} comparisons [holm1979simple]." if count > 1 else ".")
    )
    if margin := results.spec.margin:
        how = (
            "shown where that interval lies within it"
            if results.spec.until
            else "tested by two one-sided t-tests [schuirmann1987comparison]"
        )
        yield f"Equivalence within a margin of {words(results).amount(margin)} was {how}."
    if across.has_parts(results):
        yield (
            "Over all settings we report the mean difference, the probability of improvement and the "
            "performance profile, with intervals by a stratified bootstrap [agarwal2021deep]."
        )


def _software(results: Results) -> Iterator[str]:
    versions = environments(results)
    software = [
        f"{key} {' and '.join(versions[key])}" for key in ("python", "torch", "cdgrad") if key in versions
    ]
    devices = [device for device in versions.get("device", ()) if device != "cpu"]
    hardware = [*devices, *versions.get("cpu", ())]
    yield f"Software: {', '.join(software)}." + (f" Hardware: {enumerated(hardware)}." if hardware else "")


def latex(text: str) -> str:
    """Text for LaTeX: special characters escaped, references in brackets as citations."""
    return cites("".join(_TEX.get(c, c) for c in one_line(text)))


def latex_table(table: Table) -> str:
    """A table that needs no package; its title is the caption, its note follows."""
    columns = table.align.replace("p", "l")

    def row(cells: Sequence[str]) -> str:
        return " & ".join("".join(_TEX.get(c, c) for c in one_line(cell)) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            row(table.header),
            r"\hline",
            *map(row, table.rows),
            r"\hline",
            r"\end{tabular}",
            "",
            rf"\footnotesize {latex(table.note)}",
            r"\end{table}",
            "",
        ]
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

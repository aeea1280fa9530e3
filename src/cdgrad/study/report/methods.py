"""The methods section of a publication as one paragraph, from the specification and the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cdgrad.study.report import across
from cdgrad.study.report.changes import changed_later
from cdgrad.study.report.environments import environments
from cdgrad.study.report.remarks import when_tested
from cdgrad.study.report.tables import searched_keys, what
from cdgrad.study.report.words import counted, enumerated, words
from cdgrad.study.spec import ERROR, NO_METRIC, Schedule, Setting, Spec
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats


def methods(results: Results) -> str:
    """The methods section as one paragraph, from the specification and the records."""
    return " ".join(
        [
            *_design(results),
            *_runs(results),
            *_arms(results.spec),
            *_settings(results),
            *_arms_one_by_one(results),
            *_budget(results.spec),
            *_tests(results),
            *changed_later(results),
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
            else f"A seed fixes {_drawn(results)}the initialization and the order of the data, alike for all "
            "arms."
        )
    )
    if spec.until:
        yield (
            "Seeds were added until every comparison was shown, or its interval was narrower than "
            f"{words(results).amount(spec.until)}, or all of them were used."
        )
    if (measure := spec.measure) != ERROR:
        direction = "lower" if measure.direction == "min" else "higher"
        yield f"The measure is {measure.name}{words(results).in_unit}; {direction} values are better."
    if spec.evaluate == "test" and not results.count:
        yield "No run has read the test split yet."
    elif spec.evaluate == "test":
        yield f"The test split was read by the runs {when_tested(results)}."
    else:
        yield (
            "All runs were evaluated on validation data" + "; no test data was read" * (not spec.entry) + "."
        )


def _drawn(results: Results) -> str:
    """What of the images the seed draws, as recorded; empty where that is not known."""
    runs = [run for by_seed in results.finished.values() for run in by_seed.values()]
    kinds = {run.environment.get("test_split") for run in runs}
    if kinds == {"official"}:
        return "the division into training and validation images, "
    return "the division into training, validation and test images, " if kinds == {"drawn"} else ""


def _runs(results: Results) -> Iterator[str]:
    """How many runs and pairs there are, where that is not what the design says, and how runs ended."""
    spec = results.spec
    pairs = [len(results.paired_runs(cell, name)) for cell in spec.cells for name in spec.tested_contrasts]
    if pairs and {*pairs} != {len(spec.seeds)}:
        count = " to ".join(str(n) for n in sorted({min(pairs), max(pairs)}))
        yield f"The comparisons have {count} seeds that both arms finished."
    if left := results.total + results.trials_total - results.count - results.trials_finished:
        yield f"The study is not complete: {counted(left, 'run')} of it did not finish."
    if results.failed:
        are = "it is" if len(results.failed) == 1 else "they are"
        yield f"{counted(len(results.failed), 'run')} failed; {are} left out."
    finished = [run for runs in results.finished.values() for run in runs.values()]
    if diverged := sum(run.status == "diverged" for run in finished):
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
        searched = searched_keys(spec, spec.baseline)
        rate = "with a searched initial learning rate"
        if "optimizer.lr" not in searched:
            rate = f"at an initial learning rate of {setting.tables()[3].lr:g}"
        if any(_has_own_optimizer(spec, cell, arm) for arm in spec.arms):
            rate += f" for {spec.baseline}"
        the = "the" if where else "The"
        yield f"{where}{the} {_trained(setting, _counts(results, cell), rate, searched)}"


def _has_own_optimizer(spec: Spec, cell: str, arm: str) -> bool:
    """Whether an arm's optimizer differs from the baseline's before anything is searched."""
    base, own = (spec.arms_in(cell)[name] for name in (spec.baseline, arm))
    untuned = spec.tuning is not None and (own.tuning == "none") != (base.tuning == "none")
    return (own.optimizer, own.lr_factor) != (base.optimizer, base.lr_factor) or untuned


def _arms_one_by_one(results: Results) -> Iterator[str]:
    """Every arm in words; cells in which the arms are the same share a sentence."""
    if len(results.spec.arms) < 2:
        return
    cells: dict[str, list[str]] = {}
    for cell in results.spec.cells:
        arms = [f"{arm} ({words})" for arm in results.spec.arms if (words := what(results, cell, arm))]
        cells.setdefault(enumerated(arms), []).append(cell)
    for arms, those in cells.items():
        where = f"In {enumerated(those)}, the" if len(cells) > 1 else "The"
        if arms:
            yield f"{where} arms are {arms}."


def _counts(results: Results, cell: str) -> dict[str, str]:
    """The recorded images of each split, where all final runs of a cell have the same number of them."""
    recorded = [run.environment for run in results.runs_in(cell)]
    sizes = [environment["splits"] for environment in recorded if "splits" in environment]
    counts = {role: {size[role] for size in sizes} for role in ("train", "validation", "test")}
    return {role: f"{min(found):,}" for role, found in counts.items() if len(found) == 1}


def _trained(setting: Setting, counts: Mapping[str, str], rate: str, searched: Sequence[str]) -> str:
    """What all runs of a setting have in common: nothing that is searched, which other sentences tell."""
    task, model, schedule, optimizer = setting.tables()
    train, validation, test = (counts.get(k, getattr(task, k)) for k in ("train", "validation", "test"))
    data = f"{train} training, {validation} validation and {test} test images of {task.data}"
    decay = {
        "cosine": "cosine decay",
        "steps": f"a decay by the factor {schedule.step_factor:g} every {schedule.step_epochs} epochs",
        "none": "no decay",
    }
    trained = {
        "schedule.batch": f"batch size {schedule.batch}",
        "schedule.epochs": f"{schedule.epochs} epochs",
        "schedule.decay": decay[schedule.decay],
    }
    trained |= {"task.augment": f"augmentation by {enumerated(task.augment)}"} if task.augment else {}
    noise = f"wrong labels for {100 * task.label_noise:g} % of the training images"
    trained |= {"task.label_noise": noise} if task.label_noise else {}
    trained |= {"task.size": f"images of {task.size} x {task.size} pixels"} if task.size else {}
    trained |= {f"schedule.{key}": f"{key.replace('_', ' ')} {value}" for key, value in _changed(schedule)}
    trained |= {f"optimizer.{key}": f"{key} {value}" for key, value in optimizer.arguments.items()}
    built = {f"model.{key}": f"{key} {value}" for key, value in model.arguments.items()}
    if model.initialization != "default":
        built["model.initialization"] = f"{model.initialization} initialization"
    of_model, of_run = (
        [text for key, text in texts.items() if not {key, f"{key.partition('.')[0]}.name"} & {*searched}]
        for texts in (built, trained)
    )
    network = "searched network" if "model.name" in searched else f"network {model.name}"
    by = "a searched optimizer" if "optimizer.name" in searched else optimizer.name
    return f"{network}{_in_brackets(of_model)} was trained on {data} by {by} {rate}{_in_brackets(of_run)}."


def _in_brackets(texts: Sequence[str]) -> str:
    return f" ({', '.join(texts)})" if texts else ""


def _changed(schedule: Schedule) -> Iterator[tuple[str, object]]:
    """What a schedule sets beyond epochs, batch and decay, and that changes the training."""
    for key in ("warmup", "label_smoothing", "ema", "accumulate", "clip", "precision"):
        value: object = getattr(schedule, key)
        if value != getattr(Schedule, key):
            yield key, value


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
    for kind, how in (("baseline", f"used what was chosen for {spec.baseline}"), ("none", "was not tuned")):
        if others := [arm for arm, options in spec.arms.items() if options.tuning == kind]:
            yield f"{enumerated(others)} {how if len(others) == 1 else how.replace('was not', 'were not')}."
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

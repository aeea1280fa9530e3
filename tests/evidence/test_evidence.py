"""The page of the evidence says what the records say, and the records are all that was to be run."""

import re
import subprocess
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cdgrad.study import spec
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.spec import as_json
from cdgrad.study.spec.space import Dimension
from cdgrad.study.statistics.results import Results
from evidence.build import again, earlier, gpu, ranges, searches
from evidence.build import pages as build
from evidence.build.loading import CLAIMS, RECORDS, ROOT, holds
from evidence.build.loading import recorded as committed
from evidence.build.mechanism import SPECS, table

STUDIES = sorted(
    path.stem for path in RECORDS.glob("*.parquet") if not path.stem.startswith(("mechanism", "width"))
)


@lru_cache
def recorded(name):
    """The specification of a study and its committed runs."""
    study = spec.load(str(ROOT / "evidence" / "studies" / f"{name}.toml"))
    return study, from_parquet(RECORDS / f"{name}.parquet")


def change(monkeypatch, changed, *names):
    """The records have `changed(run)` in the place of each run, or of each run of the studies `names`.

    Their figures are not drawn: nothing asks about them.
    """

    def read(specification, record):
        study = committed(specification, record)
        runs = [changed(run) for run in study.runs]
        return Results.of(study.spec, runs) if not names or record.stem in names else study

    monkeypatch.setattr("evidence.build.loading.recorded", lru_cache(read))
    monkeypatch.setattr("evidence.build.figures._twice", lambda *_: [])


@pytest.fixture(scope="module")
def built():
    return build.build()


def test_every_figure_is_shown_and_no_other_is_kept(built):
    pages, _, figures = built
    drawn = {f"{drawing.name}.svg" for drawing in figures}
    assert {path.name for path in (build.ROOT / "docs" / "evidence").glob("*.svg")} == drawn
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "evidence/claims-narrow.svg" in readme
    for name in drawn:  # on a phone the site shows NAME-narrow.svg in the place of NAME.svg
        assert f"evidence/{name.replace('-narrow', '')}" in pages["evidence.md"]
        assert f"{name.removesuffix('.svg').removesuffix('-narrow')}-narrow.svg" in drawn


def test_a_changed_record_changes_every_page_and_verdict(built, monkeypatch):
    change(monkeypatch, lambda run: run if run.arm == "none" else replace(run, error=run.error + 1))
    pages, sentences, _ = build.build()
    assert all(pages[name] != text for name, text in built[0].items())
    after, before = (texts._replace(headline="") for texts in (sentences, built[1]))  # it has no number
    assert not set(filter(None, after)) & set(before)


def test_the_first_sentences_name_the_gains_that_the_records_show_and_no_other(built, monkeypatch):
    _, beside, readme, front, claim, card = built[1]  # without the headline, which is on averages alone
    gains = (
        "- re-weighted, kernel height, digits, small CNN: -0.39\u00a0±\u00a00.23 points, p = 0.021, "
        "but -0.02\u00a0±\u00a00.21 against the ordinary gradient at the same learning rate\n"
        "- re-weighted, digits, 40 % wrong labels: -0.81\u00a0±\u00a00.42 points, p = 0.010\n\nWith"
    )
    for text in (beside, readme, front):
        assert gains in text.replace("\n  ", " ")
        assert max(map(len, text.splitlines())) <= 110
    assert all("19 comparisons elsewhere, 2 show" in text.replace("\n  ", " ") for text in (claim, card))

    def without_gain(run):
        return replace(run, error=run.error + 1) if run.arm in {"reweighted", "rw-height"} else run

    change(monkeypatch, without_gain, "regimes-labels", "axes")
    for text in build.build()[1][1:]:
        assert "none shows a lower error" in text.replace("\n", " ").replace("  ", " ")
        assert not re.search(r"\s-\d", text)


def test_a_gain_on_average_is_refused_until_the_sentence_says_so(monkeypatch):
    def better(run):
        return replace(run, error=run.error - 1) if run.arm == "reweighted" else run

    change(monkeypatch, better, *CLAIMS)
    with pytest.raises(ValueError, match=r"headline\.py must say something else"):
        build.build()


def test_the_first_sentences_have_the_intervals_with_and_without_the_noise_of_tuning(built):
    for text in (built[1].readme, built[1].front, built[0]["evidence.md"]):
        words = text.replace("\n", " ").replace("\u00a0", " ")
        assert "+0.07 ± 0.08" in words
        assert re.search(r"± 0\.21(,| and) ", words)


def test_a_choice_near_an_end_of_its_range_is_named(built):
    within = Dimension(low=0.01, high=1.0, log=True)
    assert [ranges.near_an_end(v, within) for v in (0.0125, 0.1, 0.7)] == ["low", "", "high"]
    page = built[0]["evidence.md"]
    assert "| ordinary gradient | 12 | plain, SGD (low); small CNN, AdamW (high); " in page
    assert "(under SGD 0.022 to 0.73 in place of 0.013 to 0.5)" in page
    assert "18 ended above 80 % validation errors" in page  # of the longer search on photographs


def test_runs_on_a_gpu_that_learned_nothing_are_counted_and_rates_are_those_that_trained(built, monkeypatch):
    results = gpu.section()["gpu_results"]
    assert re.search(r"^\| re-weighted, lam = 10 \|.*\| 3 \| 1 \|$", results, re.MULTILINE)
    assert re.search(r"^\| re-weighted, lam = 10, 10 times the rate \|.*\| 2 \| 2 \|$", results, re.MULTILINE)

    def learned(path):
        runs = from_parquet(path)
        return [run if run.trial is not None else replace(run, error=20.0 + run.seed) for run in runs]

    monkeypatch.setattr("evidence.build.loading.from_parquet", learned)
    counts = re.findall(r"\| \d \| (\d) \|$", gpu.section()["gpu_results"], re.MULTILINE)
    assert counts == ["0"] * len(gpu.load(str(gpu.FOLDER / "resnet20-512.toml")).tested_contrasts)


def test_what_was_not_run_is_said_of_both_machines(built):
    page = built[0]["evidence.md"].replace("\n  ", " ")
    assert "records: none for the CPU, `resnet20-128`, `vgg11-128` and `vgg11-512` for a [GPU]" in page
    assert "Everything but the 39 runs [on a GPU]" in page


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_the_specification_is_there_and_no_seed_is_dropped(name):
    study, runs = recorded(name)
    keys = [run.key for run in runs]
    expected = {(cell, arm, None, seed) for cell in study.cells for arm in study.arms for seed in study.seeds}
    if study.tuning is not None:
        expected |= {
            (cell, arm, trial, seed)
            for cell in study.cells
            for arm, about in study.arms.items()
            if about.tuning == "own"
            for trial in range(study.tuning.trials)
            for seed in study.tuning.seeds
        }
    assert set(keys) == expected
    assert len(keys) == len(expected)
    assert all(run.evaluated == "validation" for run in runs if run.trial is not None)
    assert all(run.evaluated == study.evaluate for run in runs if run.trial is None)
    assert all(run.error is not None for run in runs)


@pytest.mark.parametrize("name", STUDIES)
def test_the_final_runs_have_the_setting_with_the_lowest_validation_error(name):
    study, runs = recorded(name)
    for cell, (arm, about), replicate in product(study.cells, study.arms.items(), range(study.replicates)):
        of_search = [run for run in runs if run.cell == cell and run.replicate == replicate]
        final = [run for run in of_search if (run.arm, run.trial) == (arm, None)]
        assert len({run.fingerprint for run in final}) == 1
        searched = {"own": arm, "baseline": study.baseline, "none": ""}[about.tuning]
        trials: dict = {}
        for run in of_search:
            if run.arm == searched and run.trial is not None:
                trials.setdefault(run.trial, []).append(run)
        if trials:
            best = min(sorted(trials), key=lambda trial: sum(run.error for run in trials[trial]))
            assert final[0].values == trials[best][0].values


def test_the_records_were_made_from_commits():
    for name in STUDIES:
        runs = recorded(name)[1]
        assert runs
        for run in runs:
            assert re.fullmatch(r"[0-9a-f]{40}", run.environment["commit"]), (
                f"{name}: not of a clean checkout"
            )


def test_the_records_name_commits_of_the_history():
    git = ["git", "-C", str(ROOT)]
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("needs the history of the repository")
    commits = {run.environment["commit"] for name in STUDIES for run in recorded(name)[1]}
    lost = {
        commit[:7]
        for commit in commits
        if subprocess.run(
            [*git, "merge-base", "--is-ancestor", commit, "HEAD"], capture_output=True
        ).returncode
    }
    assert not lost


@pytest.mark.parametrize("specification", ["claims-momentum", "best-effort-sgd", "rates-momentum"])
def test_a_renamed_record_is_not_read_as_another_study(specification, monkeypatch):
    for part, function in enumerate(("load", "from_parquet")):  # each file once for all tests
        read = partial(lambda part, path: recorded(Path(path).stem)[part], part)
        monkeypatch.setattr(f"evidence.build.loading.{function}", read)
    file = ROOT / "evidence" / "studies" / f"{specification}.toml"
    for name in STUDIES:
        if name == specification:
            assert committed(file, RECORDS / f"{name}.parquet").count
            continue
        message = (
            rf"{name}.parquet holds runs of arm .* under another specification than {specification}.toml"
        )
        with pytest.raises(ValueError, match=message):
            committed(file, RECORDS / f"{name}.parquet")


def test_a_run_that_two_studies_share_gave_the_same_error():
    """The baseline of the small CNN was trained anew by three studies, at three commits."""
    first, *others = (
        {
            (run.trial, run.seed): run.error
            for run in recorded(name)[1]
            if (run.cell, run.arm) == (cell, "none")
        }
        for name in ("claims-momentum", "best-effort-sgd", "controls")
        for cell in ["small-cnn-sgd"]
    )
    assert len(first) == 12 * 2 + 30
    assert all(other == first for other in others)


def test_the_mechanism_s_records_are_complete():
    modes = table("modes")
    assert (RECORDS / f"{SPECS[0]}-modes.parquet").is_file()
    for name in SPECS:
        if not (RECORDS / f"{name}-modes.parquet").is_file():
            continue
        study = spec.load(str(ROOT / "evidence" / "studies" / f"{name}.toml"))
        recorded_runs = set(zip(modes["cell"], modes["arm"], modes["seed"], strict=True))
        wanted = {(cell, arm, seed) for cell in study.cells for arm in study.arms for seed in study.seeds}
        assert wanted <= recorded_runs


def test_a_changed_run_of_the_searches_moves_its_number_on_the_page(monkeypatch):
    def worse(path):
        runs = from_parquet(path)
        return [
            replace(run, error=run.error + 1.6 * (run.arm == "sobolev" and run.seed == 0)) for run in runs
        ]

    before = searches.section()
    monkeypatch.setattr("evidence.build.loading.from_parquet", worse)
    after = searches.section()
    assert "| Sobolev | +0.54, " in before["searches_table"]
    assert "| Sobolev | +0.94, " in after["searches_table"]  # a fourth of 1.6 points


def test_the_sample_of_old_records_was_executed_with_their_settings():
    repeats, _ = again.read()
    assert len(repeats) > 20
    for repeat in repeats:
        study, runs = recorded(repeat.study)
        (run,) = (r for r in runs if r.key == (repeat.cell, repeat.arm, None, repeat.seed))
        assert (run.error, run.epochs[0]["loss"]) == (repeat.error, repeat.loss)
        assert run in list(again.sample(study, runs))


def test_studies_of_which_nothing_was_executed_again_are_named():
    executed = {repeat.study for repeat in again.read()[0]}
    left = again.section()["again_left"]
    for name in STUDIES:
        if name not in executed:
            assert (f"`{name}`" in left) == any(again.sample(*recorded(name))), name
        else:
            assert f"`{name}`" not in left


def test_a_run_executed_again_is_told_from_its_record():
    study, runs = recorded("claims-momentum")
    run = next(again.sample(study, runs))
    setting = study.setting(run.cell, run.arm, run.values)
    assert holds(run.config, as_json(setting))
    assert not holds(run.config, as_json(replace(setting, metric="l2")))
    row = again.Again("s", "c", "a", 0, "x", 3.0, 3.0, 0.5, 0.5)
    assert row.same
    assert not row._replace(error_now=3.1).same
    assert row._replace(error_now=3.1, loss_now=0.5001).rounds
    assert not row._replace(loss_now=0.6).rounds


def test_a_record_beside_itself_has_the_same_differences_and_runs():
    study = committed(ROOT / "evidence" / "studies" / "axes.toml", RECORDS / "axes.parquet")
    rows = [*earlier.comparisons(study, study.runs)]
    assert len(rows) == len(study.comparisons) == 4
    for row in rows:
        now = study.comparisons[row.cell, row.arm].comparison
        assert (row.pairs, row.mean, *row.interval) == (now.pairs, now.mean, *now.interval)
        assert row.runs == row.same == now.pairs


def test_earlier_runs_at_other_settings_are_in_the_difference_and_not_among_the_same_runs():
    study = committed(ROOT / "evidence" / "studies" / "axes.toml", RECORDS / "axes.parquet")
    (cell,) = study.spec.cells
    others = [
        replace(run, values={"lam": 1.0}, error=run.error + 1)
        if run.arm == "rw-height"
        else replace(run, error=run.error + (run.seed == 0 and run.arm == "rw-width"))
        for run in study.runs
        if run.seed != 1
    ]
    rows = {row.arm: row for row in earlier.comparisons(study, others)}
    height = study.comparisons[cell, "rw-height"].comparison.differences
    assert rows["rw-height"].mean == pytest.approx(np.delete(height, 1).mean() + 1)
    assert rows["rw-height"][-2:] == (0, 0)
    assert rows["rw-width"][-2:] == (29, 28)


def test_the_earlier_records_are_of_comparisons_that_the_present_ones_have(built):
    commit, rows = earlier.read()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    studied = {row.study for row in rows}
    assert [(row.study, row.cell, row.arm) for row in rows] == [
        (study.spec.name, *place) for study in earlier.studies(sorted(studied)) for place in study.comparisons
    ]
    farthest = f"the farthest moved by {earlier.section()['earlier_moved']} points"
    assert farthest in built[0]["evidence.md"].replace("\n", " ")

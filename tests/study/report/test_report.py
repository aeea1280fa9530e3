import csv
import dataclasses
import io
import re

import numpy as np
import pytest
from rich.console import Console

from cdgrad.study import StudyError
from cdgrad.study.records import Store
from cdgrad.study.report import compose as report
from cdgrad.study.report import paper, run_tables
from cdgrad.study.report import text as render
from cdgrad.study.report.remarks import remarks
from cdgrad.study.spec import parse
from cdgrad.study.statistics import Results


@pytest.fixture
def study(tiny_text, make_run, tmp_path):
    """A folder with twelve pairs of runs; the text may be changed."""
    twelve = tiny_text.replace("seeds = 2", "seeds = 12")

    def make(text=twelve, shift=0.0, extra=()):
        rng = np.random.default_rng(0)
        with Store(tmp_path, write=True) as store:
            digest = store.use_spec("tiny", text)
            for seed in range(12):
                base = 3 + rng.normal()
                store.add(make_run("sgd", seed, base), digest)
                store.add(make_run("directed", seed, base + shift + 0.3 * rng.normal()), digest)
            for run in extra:
                store.add(run, digest)
        return tmp_path

    return make


def shown(folder, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render.to_terminal(report.document(report.read(folder)), console)
    return console.file.getvalue()


def test_the_tables_fit_80_columns_and_hold_the_study(study):
    text = shown(study(shift=-1.0))
    assert max(map(len, text.splitlines())) <= 80
    assert "tiny: 24 of 24 runs finished" in text
    assert re.search(r"directed +-\d\.\d\d +-\d\.\d\d to -\d\.\d\d", text)
    assert "directed is better than sgd: its error is " in " ".join(text.split())


def test_with_several_arms_p_is_corrected_and_the_widest_table_still_fits(study, tiny_text, make_run):
    name = "directed-again-2"
    text = (
        tiny_text.replace("seeds = 2", "seeds = 12")
        + f'[arms.{name}]\nmetric = "sobolev:lam=0.01,boundary=periodic"\n'
    )
    extra = [make_run("sgd", seed, 12.0) for seed in range(12)]
    extra += [dataclasses.replace(run, arm=name, error=22.0 + seed / 9) for seed, run in enumerate(extra)]
    printed = shown(study(text, extra=extra))
    assert "Holm p" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed


def test_an_unfinished_study_says_what_is_left(study, tiny_text):
    text = shown(study(tiny_text.replace("seeds = 2", "seeds = 14")))
    assert "tiny: 24 of 28 runs finished" in text
    assert "4 runs remain: run the same command again" in text
    assert "24 of 28 runs finished: provisional" in text


def test_diverged_runs_count_and_failed_runs_are_named(study, tiny_text, make_run):
    extra = [
        make_run("directed", 3, 100.0, status="diverged"),
        make_run("directed", 12, 2.0),
        make_run("sgd", 12, None, status="failed", message="out of memory"),
    ]
    folder = study(tiny_text.replace("seeds = 2", "seeds = 13"), extra=extra)
    text = " ".join(shown(folder).split())
    assert "directed: 1 of 13 runs diverged (seed 3) and is included with the final error" in text
    assert "1 run failed and is left out, the first sgd, seed 12: out of memory" in text
    (comparison, _) = report.read(folder).comparisons["", "directed"]
    assert comparison.pairs == 12


def test_runs_made_under_different_software_are_pointed_out(study, make_run):
    text = " ".join(shown(study(extra=[make_run("sgd", 3, 3.0, environment={"torch": "2.1"})])).split())
    assert "The runs differ in torch (2.0, 2.1)" in text


def test_runs_of_removed_arms_and_seeds_are_left_out(study, tiny_text):
    results = report.read(study(tiny_text))
    assert (results.count, results.total) == (4, 4)


def test_a_study_with_nothing_finished_is_an_error(tiny_text, make_run, tmp_path):
    with Store(tmp_path, write=True) as store:
        store.add(
            make_run("sgd", 0, None, status="failed", message="no such model"),
            store.use_spec("tiny", tiny_text),
        )
    with pytest.raises(StudyError, match="no finished run yet, 1 failed: no such model"):
        report.read(tmp_path)


def test_the_csv_has_a_row_a_run_with_full_precision(study):
    folder = study()
    results = report.read(folder)
    report.write(results, folder)
    with (folder / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert list(rows[0])[:3] == ["arm", "seed", "error"]
    assert [float(row["error"]) for row in rows if row["arm"] == "sgd"] == results.errors("", "sgd")
    assert {row["validation_error"] for row in rows if row["seed"] == "2"} == {"5.0"}


def test_the_page_stands_alone_and_escapes_what_users_wrote(study, tiny_text):
    evil = tiny_text.replace('"Tiny"', '"<script>alert(1)</script> & | *co*"').replace(
        "seeds = 2", "seeds = 12"
    )
    folder = study(evil)
    files = report.write(report.read(folder), folder)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    # Differences, also by epoch, learning curves, levels and the loss of the last epoch.
    assert page.count("data:image/svg+xml;base64,") == 5
    assert all(path.stat().st_size > 0 for path in files)
    text = (folder / "report.md").read_text()
    assert r"\<script\>alert(1)\</script\> & \| \*co\*" in text
    for picture in re.findall(r"\]\((.*?)\)", text):
        assert (folder / picture).is_file()


def test_writing_twice_writes_the_same_bytes(study):
    folder = study()
    first = [path.read_bytes() for path in report.write(report.read(folder), folder)]
    assert first == [path.read_bytes() for path in report.write(report.read(folder), folder)]


def test_a_study_that_chooses_settings_says_that_no_test_image_was_read(study, tiny_text):
    chosen = tiny_text.replace("seeds = 2", 'seeds = 12\nevaluate = "validation"')
    assert parse(chosen, "tiny").evaluate == "validation"
    folder = study(chosen)
    with Store(folder, write=True) as store:
        runs = [dataclasses.replace(run, evaluated="validation") for run in store.runs()]
        for run in runs:
            store.add(run, store.use_spec("tiny", chosen))
    text = shown(folder)
    assert "Error on the validation images" in text
    assert "No test image was read: all 24 recorded runs were evaluated on validation images" in " ".join(
        text.split()
    )


def test_a_test_split_that_is_read_after_every_epoch_is_not_called_read_once(tiny, make_run):
    every = {"schedule": {"test_every_epoch": True}}
    runs = [make_run(arm, seed, 5.0 + seed, config=every) for arm in tiny.arms for seed in (0, 1)]
    results = Results.of(tiny, runs)
    last = "after every epoch, with the last one as the result"
    assert f"The test images were read by 4 runs, {last}." in remarks(results)
    assert f"The test split was read by the runs {last}." in paper.methods(results)
    mixed = Results.of(tiny, [runs[0], *(dataclasses.replace(run, config={}) for run in runs[1:])])
    assert f"by 4 runs, 1 of them {last}, the others once, at their end." in " ".join(remarks(mixed))


def test_an_arm_shows_when_and_with_what_its_runs_were_made(tiny, make_run):
    none = {"backend": "none"}
    runs = [
        make_run("sgd", 0, 3.0, parameters=1234, images=480, memory=3 * 2**20, started="2026-01-03T00:00:00"),
        make_run("sgd", 1, 3.0, parameters=1234, images=96, memory=5 * 2**20, environment=none),
        make_run("directed", 0, 3.0, environment={"backend": "triton"}),
    ]
    assert run_tables.resources(Results.of(tiny, runs)).rows == [
        ("sgd", "2026-01-01 to 2026-01-03", "none", "1,234", "96 to 480", "5"),
        ("directed", "2026-01-01", "triton", "-", "-", "-"),
    ]


def test_why_steps_were_no_graphs_is_said(tiny, make_run):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in tiny.arms for seed in (0, 1)]
    graphs = ["captured", "not captured: Adam has no graph", "not captured: schedule.graph is false"]
    for run, graph in zip(runs, graphs, strict=False):
        run.environment["graph"] = graph
    (said,) = [each for each in remarks(Results.of(tiny, runs)) if "CUDA graphs" in each]
    assert said == "The steps of 1 run were not CUDA graphs, which are faster on a GPU: Adam has no graph."

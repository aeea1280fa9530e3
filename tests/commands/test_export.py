"""`cdgrad export`: every number and sentence of a study, ready for a paper."""

import errno
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import in_this_process

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.report import compose, paper
from cdgrad.study.report.document import Table
from cdgrad.study.report.references import bibtex
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import parse
from cdgrad.study.statistics.results import Results

SPEC = """
baseline = "sgd"
seeds = 2
workers = 1
[task]
data = "fake"
train = 50
validation = 50
[model]
name = "small-cnn"
width = 4
[schedule]
epochs = 1
batch = 50
[optimizer]
name = "torch.optim:SGD"
lr = 0.1
momentum = 0.9
[tuning]
trials = 2
seeds = [7]
space."optimizer.lr" = { low = 0.01, high = 1.0, log = true }
[arms.sgd]
[arms.directed_1]
metric = "sobolev:lam=0.01"
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    run_study(parse(SPEC, "tiny"), folder, 1, in_this_process)
    return folder


def test_every_kind_of_file_is_written_and_none_is_overwritten(study, tmp_path, capsys):
    to = tmp_path / "paper"
    assert cli.main(["export", str(study), "--to", str(to)]) == 0
    files = {str(p.relative_to(to)) for p in to.rglob("*") if p.is_file()}
    assert {"methods.md", "methods.tex", "references.bib", "runs.csv", "trials.csv", "runs.parquet"} <= files
    assert {"figures/paired_differences.svg", "figures/paired_differences.pdf"} <= files
    assert any(re.fullmatch(r"tables/paired-difference-to-sgd\.tex", name) for name in files)
    assert (to / "figures/paired_differences.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out.splitlines()
    assert {str(to / name) for name in files} == set(printed[1:])
    for link in (tmp_path / "links" / "runs.csv", tmp_path / "links" / "runs.parquet"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "elsewhere")
        assert cli.main(["export", str(study), "--to", str(link.parent)]) == 1
        assert not (tmp_path / "elsewhere").exists()
        link.unlink()
    (to / "methods.md").write_text("edited")
    assert cli.main(["export", str(study), "--to", str(to)]) == 1
    assert capsys.readouterr().err.count("exists already; choose another --to") == 3
    assert (to / "methods.md").read_text() == "edited"


def test_after_an_error_nothing_is_left_that_a_second_attempt_would_refuse(
    tiny, make_run, tmp_path, monkeypatch
):
    results = Results.of(tiny, [make_run(arm, seed, 3.0 + seed) for arm in tiny.arms for seed in (0, 1)])
    document = replace(compose.document(results), sections=[])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(paper, "to_parquet", full)
        with pytest.raises(StudyError, match="No space left on device"):
            paper.write(results, document, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert paper.write(results, document, tmp_path)


def test_methods_count_the_images_that_were_recorded(tiny, make_run):
    splits = {"splits": {"train": 1048, "validation": 32, "test": 320, "titles": {}}}
    runs = [make_run(arm, seed, 3.0, environment=splits) for arm in ("sgd", "directed") for seed in range(2)]
    text = paper.methods(Results.of(tiny, runs))
    assert "was trained on 1,048 training, 32 validation and 320 test images of fake" in text


def test_methods_state_all_that_changes_the_training_and_the_device(tiny_text, make_run):
    schedule = 'batch = 16\nwarmup = 1\nema = 0.9\nprecision = "bfloat16"\ndecay = "steps"\nstep_epochs = 2'
    text = tiny_text.replace("batch = 16", schedule).replace("epochs = 1\n", "epochs = 4\n")
    text = text.replace("train = 48", "train = 48\nlabel_noise = 0.4")
    gpu = {"device": "H100, CUDA 13.0", "cpu": "EPYC", "torch": "2.9"}
    runs = [make_run(arm, 0, 3.0, environment=gpu, status="diverged") for arm in ("sgd", "directed")]
    said = paper.methods(Results.of(parse(text, "tiny"), runs[:1]))
    assert "a decay by the factor 0.1 every 2 epochs, wrong labels for 40 % of the training images" in said
    assert "warmup 1, ema 0.9, precision bfloat16, momentum 0.9" in said
    assert "The network small-cnn (width 2)" in said
    assert said.endswith("Hardware: H100, CUDA 13.0 and EPYC.")
    assert "1 run diverged; it is included" in said


def test_methods_of_a_study_that_adds_seeds_name_its_own_interval_and_test(tiny_text, make_run):
    adding = parse(tiny_text.replace("seeds = 2", "seeds = { until = 0.5, most = 30 }"), "tiny")
    runs = [make_run(arm, seed, 3.0 + seed % 3) for arm in ("sgd", "directed") for seed in range(6)]
    text = paper.methods(Results.of(adding, runs))
    assert "over at most 30 paired seeds" in text
    assert "Seeds were added until every comparison was shown, or its interval was narrower than 0.5" in text
    assert "its 95 % anytime-valid interval, and p of the sequential t-test that belongs to it" in text
    cited = set(re.findall(r"\[(\w+)\]", text))
    assert {"wang2023anytime", "hall1992removal"} <= cited
    listed = set(re.findall(r"@\w+\{(\w+),", bibtex(paper.methods(Results.of(adding, runs)))))
    assert cited <= listed
    fixed = bibtex(paper.methods(Results.of(parse(tiny_text, "tiny"), runs)))
    assert "wang2023anytime" not in fixed
    assert "Student" not in text
    assert "sign-flip" not in text


ROUNDED = "[arms.rounded]\nrounding = 3\n"
CELLS = "[cells.one]\n[cells.two]\noptimizer.lr = 0.2\n"
TUNING = '[tuning]\ntrials = 1\nseeds = [7]\nspace."optimizer.lr" = { low = 0.01, high = 1.0 }\n'


@pytest.mark.parametrize(
    ("old", "new", "cited"),
    [
        ("", "", {"lao2020channel"}),
        ('metric = "reweighted:lam=3"', "centralize = true", {"yong2020gradient"}),
        ("[arms.directed]", f"{ROUNDED}[arms.directed]", {"lao2020channel", "sun2022numerical"}),
        ("seeds = 2", "seeds = 2\nmargin = 0.5", {"lao2020channel", "schuirmann1987comparison"}),
        ("[arms.sgd]", f"{CELLS}[arms.sgd]", {"lao2020channel", "holm1979simple", "agarwal2021deep"}),
        ("[arms.sgd]", f"{TUNING}[arms.sgd]", {"lao2020channel", "sobol1967distribution"}),
    ],
)
def test_what_the_study_used_is_referred_to_and_nothing_else(tiny_text, make_run, old, new, cited):
    study = parse(tiny_text.replace(old, new, 1), "tiny")
    runs = [
        replace(make_run("sgd", seed, 3.0 + seed), cell=cell, arm=arm)
        for cell in study.cells
        for arm in study.arms
        for seed in range(2)
    ]
    results = Results.of(study, runs)
    named = re.findall(r"\[([a-z]+\d{4}[a-z]+)\]", paper.methods(results))
    assert set(named) == cited
    assert re.findall(r"@\w+\{(\w+),", bibtex(paper.methods(results))) == named


def test_a_study_of_one_arm_is_described_without_a_comparison(tiny_text, make_run):
    alone = parse(tiny_text.partition("[arms.directed]")[0], "tiny")
    results = Results.of(alone, [make_run("sgd", seed, 3.0) for seed in range(2)])
    text = paper.methods(results)
    assert text.startswith("We trained sgd over 2 seeds.")
    assert "paired" not in text
    assert bibtex(paper.methods(results)) == ""


def test_trials_that_a_specification_lists_are_no_sequence(tiny_text, make_run):
    listed = TUNING.replace("space.", 'points.sgd = [{ "optimizer.lr" = 0.1 }]\narms.sgd.')
    text = tiny_text.partition("[arms.directed]")[0].replace("[arms.sgd]", f"{listed}[arms.sgd]")
    described = paper.methods(Results.of(parse(text, "tiny"), [make_run("sgd", 0, 3.0)]))
    assert "1 trial listed in the specification was executed" in described
    assert "Sobol" not in described


def test_methods_state_design_search_tests_and_software(study):
    text = paper.methods(compose.read(study))
    assert "We compared directed_1 with sgd over 2 paired seeds." in text
    assert "The test split was read by the runs once each, at their end." in text
    assert "small-cnn (width 4) was trained on 50 training, 50 validation and 300 test images of fake" in text
    assert "2 trials of a scrambled Sobol sequence were executed on 1 seed that no final run uses" in text
    assert "The search space of sgd was optimizer.lr from 0.01 to 1 (logarithmic)." in text
    assert "by torch.optim:SGD with a searched initial learning rate (batch size 50" in text
    assert "two-sided sign-flip permutation test." in text  # one comparison: no correction
    assert "torch 2." in text
    assert "[lao2020channel]" in text


def test_latex_escapes_what_is_special_and_cites():
    assert paper.latex(r"a_b 5 % {x} \ [holm1979simple]") == (
        r"a\_b 5 \% \{x\} \textbackslash{} \cite{holm1979simple}"
    )
    assert paper.latex("layers [3]") == "layers [3]"  # an optimizer's argument, not a citation
    table = paper.latex_table(Table("T & U", ("arm", "mean"), [("a_b", "<.001")], "n", "lr"))
    assert r"\begin{tabular}{lr}" in table
    assert r"a\_b & \textless{}.001 \\" in table
    assert r"\caption{T \& U}" in table
    row = ("a-1", "-0.52", "-0.9 to +1e-05", "-")
    signs = paper.latex_table(Table("T", ("arm", "mean", "95 % t", "p"), [row], "", "lrrr"))
    assert r"a-1 & $-$0.52 & $-$0.9 to +1e-05 & -- \\" in signs


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_compiles(study, tmp_path):
    assert cli.main(["export", str(study), "--to", str(tmp_path)]) == 0
    names = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.tex")]
    body = "\n".join(rf"\input{{{name}}}" for name in names)
    main = rf"\documentclass{{article}}\begin{{document}}{body}\end{{document}}"
    Path(tmp_path / "main.tex").write_text(main)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_table_states_the_alignment_of_every_column():
    with pytest.raises(ValueError, match="a letter l, r or p for each"):
        Table("T", ("arm", "mean"), [("a", "1")], "", "l")


def test_the_arms_are_compared_with_any_of_them(study, tmp_path, capsys, no_figures):
    assert cli.main(["report", str(study), "--reference", "directed_1"]) == 0
    assert "Paired difference to directed_1" in capsys.readouterr().out
    assert cli.main(["export", str(study), "--to", str(tmp_path), "--all-pairs"]) == 0
    assert "We compared all pairs of sgd and directed_1 over" in (tmp_path / "methods.md").read_text()
    assert cli.main(["report", str(study), "--reference", "none"]) == 1
    assert "has no arm 'none'; it has sgd, directed_1" in capsys.readouterr().err

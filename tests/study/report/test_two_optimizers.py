"""Two of one's own optimizers compared by perplexity, from the plan to the publication, as users would."""

import io
import re
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path

import pytest
from tiny_study import in_this_process, without_figures

from cdgrad import cli
from cdgrad.study.report import live_page
from cdgrad.study.run import driver, local_engine

EXAMPLES = Path(__file__).parents[3] / "examples"
FOREIGN = re.compile(r"\b(images?|gradients?|points?|errors?|no metric|channels?)\b", re.IGNORECASE)


def without_specification(text):
    """A report shows the TOML as it is: its table is called [metric]."""
    return re.sub(r"(## Specification|<h2 id=\"specification\">).*", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example, shorter: an epoch of a few steps."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("perplexity.toml", "perplexity_study.py"):
        shutil.copy(EXAMPLES / name, folder)
    code = (folder / "perplexity_study.py").read_text()
    shorter = {"EPOCHS, BATCH = 8, 60_000, 6": "EPOCHS, BATCH = 8, 30_000, 2", "[:20_000]": "[:4_000]"}
    for long, short in shorter.items():
        assert long in code
        code = code.replace(long, short)
    (folder / "perplexity_study.py").write_text(code)
    change(folder, "seeds = 10", "seeds = 3")
    change(folder, "trials = 5", "trials = 2")
    change(folder, "workers = 2", "workers = 1")
    return folder


def change(folder, old, new):
    text = (folder / "perplexity.toml").read_text()
    assert old in text
    (folder / "perplexity.toml").write_text(text.replace(old, new))


def cdgrad(folder, *arguments):
    """What a command prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(folder)
        without_figures(patch)
        assert cli.main(arguments) == 0, printed.getvalue()[-2000:]
    return printed.getvalue()


def interrupted(folder):
    """Start the study, and interrupt it after its second run."""

    def two_runs(take, workers, *, gpus=(), **options):
        yield from islice(in_this_process(take, workers, **options), 2)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as printed:
        patch.chdir(folder)
        for module in (local_engine, driver):
            patch.setattr(module, "run_all", two_runs)
        assert cli.main(["study", "perplexity.toml"]) == 130
    assert "interrupted; runs/perplexity has the finished runs" in printed.getvalue()


@pytest.fixture(scope="module")
def said(folder):
    """All that the commands print or write, from the plan to the export."""
    plan = cdgrad(folder, "plan", "perplexity.toml", "--sd", "0.3")
    interrupted(folder)
    change(folder, "seeds = 3", "seeds = 4")
    extended = cdgrad(folder, "study", "perplexity.toml")
    assert re.search(r"12 runs, [2-9] of them finished", extended)
    report = cdgrad(folder, "report", "runs/perplexity", "--target", "40")
    exported = cdgrad(folder, "export", "runs/perplexity", "--to", "paper", "--target", "40")
    assert "written:" in exported
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        page = live_page.page(folder / "runs" / "perplexity")
    kinds = (".html", ".md", ".csv", ".tex", ".bib")
    files = [path for path in folder.rglob("*") if path.suffix in kinds]
    assert {"report.html", "methods.tex", "runs.csv", "trials.csv"} <= {path.name for path in files}
    texts = [re.sub(r"data:image[^\"]*", "", path.read_text()) for path in files]
    return [
        plan,
        extended,
        report,
        *map(without_specification, [*texts, re.sub(r"data:image[^\"]*", "", page)]),
    ]


def test_nothing_speaks_of_images_gradients_points_or_errors(said):
    text = "\n".join(
        re.sub(r"<style>.*?</style>|<script>.*?</script>", "", part, flags=re.DOTALL) for part in said
    )
    text = re.sub(r"title += \{.*\}", "", text)  # of papers
    assert not {match.group() for match in FOREIGN.finditer(text)}


def test_the_report_is_of_perplexity_and_holds_its_targets_and_further_measures(said):
    report = " ".join(said[2].split())
    assert "Paired difference to momentum, in perplexity: negative is better" in report
    assert "Time to a validation perplexity of 40" in report
    assert "Further measures, not tested" in report
    assert re.search(
        r"sign (is (better|worse) than|against) momentum: (its perplexity is|no difference)", report
    )


def test_the_export_names_the_result_and_cites_what_it_uses(folder, said):
    head = (folder / "paper" / "runs.csv").read_text().partition("\n")[0].split(",")
    assert head[:3] == ["arm", "seed", "perplexity"]
    assert (
        "The measure is perplexity; lower values are better." in (folder / "paper" / "methods.md").read_text()
    )
    assert "lao2020" not in (folder / "paper" / "references.bib").read_text()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_compiles(folder, said):
    paper = folder / "paper"
    names = [path.relative_to(paper).as_posix() for path in sorted(paper.rglob("*.tex"))]
    inputs = "\n".join(rf"\input{{{name}}}" for name in names)
    (paper / "main.tex").write_text(rf"\documentclass{{article}}\begin{{document}}{inputs}\end{{document}}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(command, cwd=paper, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]

"""Documents are tests: their code runs, and their numbers are those of the committed records."""

import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from documents import ROOT, blocks
from tiny_study import without_figures, without_workers

from cdgrad import cli
from cdgrad.study import spec

PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
DOCUMENTS = [ROOT / "README.md", *PAGES]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_every_block_runs_in_order(document, tmp_path, monkeypatch):
    """In an empty folder, as a reader would run them; a ``text`` block shows what the one before printed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    without_workers(monkeypatch)
    without_figures(monkeypatch)
    namespace, printed = {"__name__": "__main__"}, ""
    for mark, language, code in blocks(document):
        if re.fullmatch(r"not run: \S.*", mark):
            continue
        if mark.startswith("file: "):
            name = mark.removeprefix("file: ")
            assert f"`{name}`:\n\n<!-- {mark} -->" in document.read_text(), f"the reader must see {name}, too"
            Path(name).write_text(code)
        elif language == "python":
            with redirect_stdout(io.StringIO()) as output:
                exec(compile(code, document.name, "exec"), namespace)
            printed = output.getvalue()
        elif language == "sh":
            printed = "".join(map(run_command, code.splitlines()))
        elif language == "toml":
            spec.parse(code, document.name)
        elif language == "text":
            assert same_but_digits(code, printed), f"the page shows\n{code}\nand it printed\n{printed}"
        else:
            # test_distributed_docs runs what needs torchrun, and test_site the directives.
            assert re.fullmatch(r"python torchrun|bibtex|\{.*\}.*", language), f"how is {language!r} checked?"


def run_command(line):
    """What a line of a shell prints. `cdgrad` runs here, where torch is imported already."""
    program, *arguments = shlex.split(line)
    if program == "python":
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert program == "cdgrad", f"how is {line!r} checked?"
    with redirect_stdout(io.StringIO()) as output:
        assert cli.main(arguments) == 0, line
    return output.getvalue()


def same_but_digits(shown, printed):
    """The same lines but for spaces and the digits of fractions; a line ``...`` stands for any lines."""
    shown, printed = (
        [" ".join(re.sub(r"\d+\.\d+(e[+-]\d+)?", "#", line).split()) for line in text.strip().splitlines()]
        for text in (shown, printed)
    )
    pattern = "\n".join("(.|\n)*" if line == "..." else re.escape(line) for line in shown)
    return re.fullmatch(pattern, "\n".join(printed)) is not None


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("error 2.5 %, p = 0.01", "error 12.25 %,  p = 1.0e-05\n", True),
        ("10 seeds", "11 seeds", False),
        ("first\n...\nlast", "first\n1\n2\nlast", True),
        ("first\n...\nlast", "first\n1\n2", False),
    ],
)
def test_what_is_shown_is_compared_with_what_is_printed(shown, printed, same):
    assert same_but_digits(shown, printed) is same


def test_the_two_commands_of_the_readme_are_targets():
    install, commands = (block.code for block in blocks(ROOT / "README.md") if block.language == "sh")
    assert install == "pip install --constraint constraints.txt '.[study]'\n"
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    assert lines == ["make quickstart", "make test"]
    for line in lines:
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_every_relative_link_leads_somewhere():
    links = [
        (doc, link)
        for doc in DOCUMENTS
        for link in re.findall(r"(?:\]\(|src=\"|srcset=\")([^)#:\"]+)[)\"]", doc.read_text())
    ]
    assert len(links) > 50
    assert not [(doc.name, link) for doc, link in links if not (doc.parent / link).exists()]

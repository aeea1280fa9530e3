"""Files of the user's are executed only where a specification names them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cdgrad
from cdgrad import cli

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cdgrad.__file__).parents[1])}
TRAP = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\nraise SystemExit('executed')\n"
NETWORK = """
import helper  # a sibling

def build(image_shape, classes):
    from late import WIDTH  # in the call
    from torch import nn
    pool = nn.AdaptiveAvgPool2d(1)
    layers = nn.Conv2d(image_shape[0], WIDTH, 3), pool, nn.Flatten(), nn.Linear(WIDTH, classes)
    return nn.Sequential(*layers)
"""
ENTRY = """
import helper

def run(seed, arm):
    from late import WIDTH
    arm.attached = True
    return {"error": WIDTH}
"""


def python(folder, *arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@pytest.fixture
def project(tmp_path, tiny_text):
    """A folder of the user's, with files that many packages would import if they could."""
    (tmp_path / "tiny.toml").write_text(tiny_text.replace('data = "fake"', 'data = "digits"'))
    for name in ("uarray", "scipy", "rich", "random", "torch", "sklearn"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


SCRIPT = ("-c", "import sys; del sys.path[0]; from cdgrad.cli import main; sys.exit(main())")
COMMANDS = {  # every command, in an order in which each finds what it needs
    "init": ["mine"],
    "plan": ["tiny.toml", "--no-timing"],
    "study": ["tiny.toml", "--out", "out"],
    "report": ["out"],
    "export": ["out", "--to", "paper"],
    "record": ["out", "--to", "runs.parquet"],
    "train": ["tiny.toml"],
    "inspect": [],
    "bench": ["--help"],
}


def test_the_commands_are_all_here():
    assert COMMANDS.keys() == cli._COMMANDS.keys()


@pytest.mark.parametrize(
    ("start", "commands"),
    [(("-m", "cdgrad"), COMMANDS), (SCRIPT, ("study", "report"))],
    ids=["module", "script"],
)
def test_no_command_executes_or_changes_a_file_of_the_folder_it_is_started_in(project, start, commands):
    (project / "checkpoints").mkdir()
    for name in ("report.md", "report.html", "runs.csv", "checkpoints/net.pt", "study.sqlite", "log"):
        (project / name).write_text("mine")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    for command in commands:
        done = python(project, *start, command, *COMMANDS[command])
        assert done.returncode == 0, (command, done.stderr)
    assert not list(project.glob("*.ran"))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("command", ["study", "train"])
@pytest.mark.parametrize("kind", ["network", "entry"])
def test_modules_beside_a_specification_are_found_from_anywhere(tmp_path, tiny_text, command, kind):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "helper.py").write_text("")
    (project / "late.py").write_text("WIDTH = 3\n")
    (project / "uarray.py").write_text(TRAP)
    (project / "own_module.py").write_text(NETWORK if kind == "network" else ENTRY)
    text = tiny_text.replace('name = "small-cnn"\nwidth = 2', 'name = "own_module:build"')
    if kind == "entry":
        text = 'baseline = "a"\nseeds = 1\nentry = "own_module:run"\narms.a = {}\n'
    (project / "own.toml").write_text(text)
    out = ["--out", "out"] if command == "study" else []
    done = python(elsewhere, "-m", "cdgrad", command, "../project/own.toml", *out)
    assert done.returncode == 0, done.stderr
    assert not list(project.glob("*.ran"))


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "1 / 0", "import nonesuch", "def other(): ..."])
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, tiny_text, body):
    (tmp_path / "mine.py").write_text(body)
    (tmp_path / "own.toml").write_text(
        tiny_text.replace('name = "small-cnn"\nwidth = 2', 'name = "mine:build"')
    )
    done = python(tmp_path, "-m", "cdgrad", "train", "own.toml")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "mine:build cannot be imported" in done.stderr

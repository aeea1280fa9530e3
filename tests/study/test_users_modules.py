"""Files of the user's are executed only where a specification names them."""

import json
import os
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import pytest

import cdgrad
from cdgrad import cli
from cdgrad.commands import inspect
from cdgrad.study import StudyError, callables, models, spec
from cdgrad.study.callables import UserCodeError
from cdgrad.study.run.driver import run_study

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
    (tmp_path / "fake.toml").write_text(tiny_text)
    (tmp_path / "tiny.toml").write_text(tiny_text.replace('data = "fake"', 'data = "digits"'))
    for name in ("uarray", "scipy", "rich", "random", "socket", "torch", "sklearn"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


COMMANDS = {  # every command, in an order in which each finds what it needs
    "init": ["mine"],
    "plan": ["tiny.toml", "--no-timing"],
    "study": ["tiny.toml", "--out", "out", "--workers", "1"],
    "report": ["out"],
    "log": ["out"],
    "export": ["out", "--to", "paper"],
    "record": ["out", "--to", "runs.parquet"],
    "train": ["tiny.toml"],
    "inspect": [],
    "bench": ["--help"],
}
# Each in a process of its own, forked where torch is loaded, which would take each as long as all else; its
# figures are empty. The study in a script could differ in its worker.
START = """
import gc, json, os, runpy, sys
del sys.path[0]
import torch._dynamo
from matplotlib.figure import Figure
Figure.savefig = lambda *_, **__: None
loaded = {"uarray", "scipy", "rich", "sklearn"} & sys.modules.keys()
assert not loaded, loaded
gc.freeze()
for command in json.loads(sys.argv[1]):
    if not os.fork():
        sys.argv[1:] = command
        sys.path.insert(0, os.getcwd())
        try:
            runpy.run_module("cdgrad", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            os._exit(ended.code or 0)  # freeing what is loaded takes as long as a command
    if os.wait()[1]:
        sys.exit(f"{command} failed")
sys.argv[1:] = ["study", "fake.toml", "--out", "script", "--workers", "1"]
from cdgrad.cli import main
sys.exit(main())
"""


def test_the_commands_are_all_here():
    assert COMMANDS.keys() == cli._COMMANDS.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_no_command_executes_or_changes_a_file_of_the_folder_it_is_started_in(project):
    (project / "checkpoints").mkdir()
    for name in ("report.md", "report.html", "runs.csv", "checkpoints/net.pt", "study.sqlite", "log"):
        (project / name).write_text("mine")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = python(project, "-c", START, json.dumps([[name, *rest] for name, rest in COMMANDS.items()]))
    assert done.returncode == 0, done.stderr
    for new in (["-m", "cdgrad", "init", "other"], ["-m", "cdgrad", "log", "out"]):
        assert python(project, *new).returncode == 0
    assert not list(project.glob("*.ran"))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("command", ["study", "train"])
@pytest.mark.parametrize("kind", ["network", "entry"])
def test_modules_beside_a_specification_are_found_from_anywhere(
    tmp_path, monkeypatch, no_figures, tiny_text, command, kind
):
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
    options = ["--out", "out", "--workers", "1"] if command == "study" else []
    if (command, kind) == ("train", "network"):  # the one that imports all in a single new process
        done = python(elsewhere, "-m", "cdgrad", command, "../project/own.toml", *options)
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.chdir(elsewhere)
        before = [*sys.path]
        assert cli.main([command, "../project/own.toml", *options]) == 0
        assert sys.path == before
    assert not list(project.glob("*.ran"))


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "1 / 0", "import nonesuch", "def other(): ..."])
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, capsys, tiny_text, body):
    (tmp_path / "mine.py").write_text(body)
    (tmp_path / "own.toml").write_text(
        tiny_text.replace('name = "small-cnn"\nwidth = 2', 'name = "mine:build"')
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "own.toml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine:build cannot be imported" in line
    assert ("; install it, or correct the import" in line) is (body == "import nonesuch")


NETWORKS = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, *arguments, **keys):
        super().__init__(1, 1)
        self.arguments, self.keys = arguments, keys

class Plain(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)

def by_name(width, *, in_channels, classes=3): return Net(width, in_channels, classes)
def by_place(shape, n, depth=1): return Net(shape, n, depth)
def anything(*arguments, **keys): return Net(*arguments, **keys)
def fixed(): return Net()
def keyed(num_classes=10, width=1): return Net(num_classes, width)
def odd(num_classes, hidden, width): return Net()
def broken(image_shape, classes): raise KeyError("layer7")
made = Net()
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    (tmp_path / "ownnets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "keys", "arguments"),
    [
        ("Plain", {}, (10,)),
        ("by_name", {"width": 4}, (4, 1, 10)),
        ("by_place", {"depth": 2}, ((1, 8, 8), 10, 2)),
        ("anything", {}, ((1, 8, 8), 10)),
        ("fixed", {}, ()),
        ("keyed", {"num_classes": 7}, (7, 1)),
    ],
)
def test_a_network_is_called_by_one_convention(networks, name, keys, arguments):
    assert models.build(f"ownnets:{name}", (1, 8, 8), 10, keys).arguments == arguments
    if not keys:
        inspected = inspect.load_model(f"ownnets:{name}", None, (1, 8, 8), 10)
        assert inspected.arguments == arguments


def test_a_signature_that_does_not_fit_is_answered_with_the_convention(networks):
    with pytest.raises(StudyError) as caught:
        models.build("ownnets:odd", (1, 8, 8), 10, {"depth": 3})
    assert str(caught.value) == (
        "ownnets:odd refuses its arguments (depth): it is called as build(image_shape, classes, ...) with "
        "the keys of [model], and takes (num_classes, hidden, width); name its parameters image_shape, "
        "in_channels or num_classes, or give the others as keys"
    )


def test_a_network_that_raises_is_named_with_its_error_and_one_made_before_is_refused(networks, capsys):
    with pytest.raises(UserCodeError, match="ownnets:broken failed: KeyError: 'layer7'"):
        models.build("ownnets:broken", (1, 8, 8), 10, {})
    with pytest.raises(StudyError, match="ownnets:made is a network, and every run needs a new one"):
        models.build("ownnets:made", (1, 8, 8), 10, {})
    assert cli.main(["inspect", "ownnets:broken"]) == 1
    line = capsys.readouterr().err
    assert 'raise KeyError("layer7")' in Path(line.split("the traceback is in ")[1].strip()).read_text()


def test_training_code_of_another_signature_is_answered_with_the_convention():
    with pytest.raises(
        StudyError, match=r"mine:run is called as run\(seed, arm\), and takes \(config\); let"
    ):
        callables.check_entry(lambda config: None, "mine:run")


@pytest.mark.parametrize("name", ["statistics", "code", "random"])
def test_a_file_under_the_name_of_a_module_of_python_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as caught:
        callables.load_callable(f"{name}:run")
    assert str(caught.value) == (
        f"{name}:run resolves to the module {name} of Python's library, which precedes "
        f"{tmp_path / name}.py; rename the file, such as to my_{name}.py, and name my_{name}:run"
    )
    assert not (tmp_path / f"{name}.ran").exists()


def test_a_file_under_the_name_of_an_installed_module_is_named_where_something_is_missing(
    tmp_path, monkeypatch
):
    (tmp_path / "numba.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StudyError, match=r"numba:run resolves to the module numba that is installed, .*my_numba:run"
    ):
        callables.load_callable("numba:run")
    assert callables.load_callable("numba:njit")  # what is there is what the name says


def test_a_function_of_a_notebook_is_answered_with_what_to_do():
    with pytest.raises(StudyError, match=r"__main__:run: a worker process cannot import .* name it mine:run"):
        callables.load_callable("__main__:run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("__main__:Net", r"a worker process cannot import what a notebook or a script defines; write Net"),
        (
            "absent_nets:Net",
            r"no module absent_nets in .*, or installed; write Net into absent_nets.py there",
        ),
        ("made_here:Net", r"no module made_here in .*%%writefile made_here.py in a notebook"),
    ],
)
def test_a_network_that_no_worker_can_import_is_refused_before_one_starts(
    name, message, tiny_text, tmp_path, monkeypatch
):
    """As of a class in a cell of a notebook; also where the cell made a module that has no file."""
    monkeypatch.setitem(sys.modules, "made_here", ModuleType("made_here"))
    monkeypatch.setattr(BaseProcess, "start", None)
    study = spec.parse(tiny_text.replace('name = "small-cnn"', f'name = "{name}"'), "tiny")
    with pytest.raises(StudyError, match=message) as caught:
        run_study(study, tmp_path / "out", workers=1)
    assert "\n" not in str(caught.value)

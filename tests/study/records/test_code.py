"""Code that changes between two calls of a study, and other hollow comparisons: refused or remarked."""

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

import cdgrad
from cdgrad import cli
from cdgrad.study.records import Run, Store, code
from cdgrad.study.records.code import changed_files, used_packages, user_code
from cdgrad.study.records.environment import environment, folder_commit
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.verdicts import verdict, verdicts
from cdgrad.study.spec import Spec, parse
from cdgrad.study.statistics.paired import compare
from cdgrad.study.statistics.results import Results

SPEC = """
baseline = "sgd"
seeds = {seeds}
workers = 1
task = {{ data = "fake", train = 40, validation = 20 }}
model = {{ name = "mynet:build", width = 2 }}
schedule = {{ epochs = 1, batch = 20 }}
optimizer = {{ name = "torch.optim:SGD", lr = 0.05 }}
arms.sgd = {{}}
"""
NET = """
from torch import nn

from blocks import activation

def build(shape, classes, width):
    return nn.Sequential(nn.Conv2d(1, width, 3), activation(), nn.Flatten(), nn.Linear(36 * width, classes))
"""


@pytest.fixture
def study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_figures: None
) -> Callable[..., tuple[int, str]]:
    """Executes the study of a folder, in a worker: the exit status, and what came to stderr."""

    def execute(folder: Path, seeds: int, *options: str) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        (folder / "s.toml").write_text(SPEC.format(seeds=seeds))
        return cli.main(["study", "s.toml", *options]), capsys.readouterr().err

    return execute


def test_a_study_does_not_mix_runs_of_changed_code(study: Callable[..., tuple[int, str]], tmp_path: Path):
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "blocks.py").write_text("from torch.nn import ReLU as activation\n")
    assert study(tmp_path, 1)[0] == 0
    (tmp_path / "blocks.py").write_text("from torch.nn import Tanh as activation\n")
    assert study(tmp_path, 1)[0] == 0  # nothing is added
    status, refused = study(tmp_path, 2)
    assert status == 1
    (line,) = [line for line in refused.splitlines() if line.startswith("cdgrad:")]
    assert "blocks.py changed since runs/s recorded 1 runs" in line
    assert "add --allow-code-change" in line
    assert study(tmp_path, 2, "--allow-code-change")[0] == 0
    assert "The code changed between the runs (blocks.py)" in Path(tmp_path, "runs/s/report.md").read_text()


def test_a_library_of_the_users_elsewhere_is_their_code_and_installed_packages_are_not(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its project may be in PYTHONPATH or be installed to be edited; beside it, a folder of packages."""
    project, packages, folder = (tmp_path / name for name in ("project", "packages", "folder"))
    for place in (project / "mylib", packages / "installed", packages / "installed-1.0.dist-info", folder):
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("")
    metadata = {"METADATA": "Name: installed\nVersion: 1.0\n", "top_level.txt": "installed\n"}
    for name, text in metadata.items():
        (packages / "installed-1.0.dist-info" / name).write_text(text)
    (project / "mylib" / "blocks.py").write_text(
        "import installed\nfrom torch.nn import ReLU as activation\n"
    )
    (folder / "mynet.py").write_text(NET.replace("from blocks", "from mylib.blocks"))
    for path in (packages, project):
        monkeypatch.syspath_prepend(path)
    assert study(folder, 1)[0] == 0
    with Store(folder / "runs" / "s", write=False) as store:
        (run,) = store.runs()
    assert run.environment["code"].keys() == {"mynet.py", "mylib", "mylib.blocks"}
    assert run.environment["packages"] == {"installed": "1.0"}
    (project / "mylib" / "blocks.py").write_text(
        "import installed\nfrom torch.nn import Tanh as activation\n"
    )
    status, refused = study(folder, 2)
    assert status == 1
    assert "cdgrad: mylib.blocks changed since runs/s recorded 1 runs" in refused


@pytest.mark.parametrize(("among_packages", "is_package"), [(True, False), (False, True)])
def test_modules_of_a_deep_or_odd_name_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, among_packages: bool, is_package: bool
):
    """The user's own, too, where packages lie beside it, or where it is a package installed to be edited."""
    if among_packages:
        (tmp_path / "other-1.0.dist-info").mkdir()
    monkeypatch.setattr(code, "_distributions", lambda: {"deep_lib": ["deep-lib"]} if is_package else {})
    for name in ("deep_lib/one/two/three.py", "deep_lib/pack/__init__.py", "deep_lib/py.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["deep_lib.one.two.three", "deep_lib.pack", "deep_lib.py"]
    for name in names:
        importlib.import_module(name)
    seen = user_code("", names)
    assert sorted(seen) == names
    assert changed_files([seen], "") == []
    assert changed_files([{names[0]: "1" * 16}, seen], "") == names[:1]  # of one run of several
    (tmp_path / "deep_lib" / "py.py").unlink()
    (tmp_path / "deep_lib" / "one" / "two" / "three.py").write_text("1")
    assert changed_files([seen], "") == [names[0], names[2]]
    assert user_code("", names) == seen  # what was imported is what runs use
    assert changed_files([{"absent_lib.nets": "1" * 16}], "") == []
    for name in ("absent.py", ".hidden.py"):
        assert changed_files([{name: "1" * 16}], "") == [name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("compiled_nets", "nets.so"),
        ("installed_nets", "site-packages/nets.py"),
        ("torch.own_nets", "torch/nets.py"),  # built to be edited: records have its version
        ("__main__", "script.py"),
        ("standard_nets", os.__file__),
    ],
)
def test_other_modules_are_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    if not Path(file).is_absolute():
        (tmp_path / file).write_text("")
    module = ModuleType(name)
    module.__file__ = str(tmp_path / file)
    monkeypatch.setitem(sys.modules, name, module)
    assert user_code("", [name]) == {}


def test_files_below_the_specification_or_the_working_directory_are_named_by_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "placed_lib").mkdir()
    (tmp_path / "placed_lib" / "nets.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("placed_lib.nets")
    for folder, directory in ((str(tmp_path), tmp_path.parent), ("", tmp_path)):
        monkeypatch.chdir(directory)
        used = user_code(folder, ["placed_lib.nets"])
        assert [*used] == ["placed_lib/nets.py"]
        assert changed_files([used], folder) == []


def test_a_module_whose_file_is_gone_and_lies_higher_than_its_name_says_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
):
    module = ModuleType("a.b.c.d")
    module.__file__ = os.path.abspath(os.sep + "absent.py")
    monkeypatch.setitem(sys.modules, "a.b.c.d", module)
    assert user_code("", ["a.b.c.d"]) == {}


def test_identical_arms_are_no_tight_null():
    sentence = verdict("b", "a", compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), 1.0)
    assert "all 3 differences are +0.00 points, so that nothing can be estimated" in sentence
    assert "% of studies" not in sentence


def test_what_makes_a_comparison_hollow_is_remarked(tiny: Spec, make_run: Callable[..., Run]):
    runs = [make_run(arm, seed, 5.0 + seed) for arm in ("sgd", "directed") for seed in (0, 1)]
    sentences = " ".join(remarks(Results.of(tiny, [*runs, make_run("sgd", 7, 1.0), make_run("sgd", 8, 1.0)])))
    assert "directed differs from sgd by 0.00 points in every seed" in sentences
    assert "Recorded but left out of this report: seed 7, 8." in sentences
    fewer = dataclasses.replace(tiny, arms={"sgd": tiny.arms["sgd"]})
    assert "Recorded but left out of this report: arm directed." in " ".join(remarks(Results.of(fewer, runs)))
    assert verdicts(Results.of(fewer, runs), "") == []


TUNED = """
baseline = "sgd"
seeds = 2
entry = "mytrain:run"
arms.sgd = {}
[tuning]
trials = 3
seeds = [10]
space = { lr = { low = 0.01, high = 0.1 } }
"""


@pytest.mark.parametrize(("errors", "said"), [((4.0, 4.0, 4.0), True), ((4.0, 4.0, 3.0), False)])
def test_trials_that_all_agree_are_remarked(
    make_run: Callable[..., Run], errors: tuple[float, ...], said: bool
):
    spec = parse(TUNED, "s")
    runs = [
        make_run("sgd", 10, error, trial=trial, values={"lr": 0.1 * trial})
        for trial, error in enumerate(errors)
    ]
    text = " ".join(remarks(Results.of(spec, runs)))
    assert ("All 3 trials of sgd have equal results" in text) is said


def test_values_that_the_training_code_never_read_are_remarked(make_run: Callable[..., Run]):
    spec = parse(TUNED[: TUNED.index("[tuning]")], "s")
    runs = [make_run("sgd", seed, 3.0, environment={"unread": ["momentm"]}) for seed in range(2)]
    text = " ".join(remarks(Results.of(spec, runs)))
    assert "never read momentm of arm sgd: the values changed nothing" in text


@pytest.mark.parametrize(("errors", "said"), [((0.11, 0.2), True), ((0.11, 3.0), False)])
def test_errors_that_look_like_shares_are_asked_about(
    make_run: Callable[..., Run], errors: tuple[float, ...], said: bool
):
    spec = parse(TUNED[: TUNED.index("[tuning]")], "s")
    runs = [make_run("sgd", seed, error) for seed, error in enumerate(errors)]
    asked = any("a share from 0 to 1?" in remark for remark in remarks(Results.of(spec, runs)))
    assert asked is said


def test_the_device_of_a_run_is_named(monkeypatch: pytest.MonkeyPatch):
    def device(kind: str) -> str:
        return environment.__wrapped__(kind)["device"]

    def fails():
        raise RuntimeError("no driver")

    assert device("cpu") == "cpu"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert device("cuda") == "H100, CUDA 13.0"
    monkeypatch.setattr(torch.cuda, "get_device_name", fails)
    assert device("cuda") == "no GPU"


def test_the_commit_of_cdgrad_is_that_of_the_repository_which_tracks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def git(*arguments: str) -> str:
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "packages" / "cdgrad"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(cdgrad, "__file__", str(package / "__init__.py"))
    commit = [environment.__wrapped__()["commit"], folder_commit(str(package))]
    git("init", "-q")
    git("commit", "-qm", "the user's own", "--allow-empty")
    commit.append(environment.__wrapped__()["commit"])
    assert commit == [None, None, None]
    git("add", ".")
    git("commit", "-qm", "cdgrad")
    head = git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("")
    assert environment.__wrapped__()["commit"] == folder_commit(str(tmp_path)) == head
    (package / "new.py").write_text("")
    assert environment.__wrapped__()["commit"] == f"{head} with changes"
    (package / "__init__.py").write_text("1")
    (tmp_path / "beside").mkdir()
    assert folder_commit(str(tmp_path / "beside")) == head


def test_the_commit_of_a_folder_is_read_whatever_its_files_are_called_and_changes_nothing(tmp_path: Path):
    def git(*arguments: str | Path):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    odd, same = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")), tmp_path / "same.py"
    odd.write_text("1")
    same.write_text("1")
    git("init", "-q")
    git("config", "core.quotePath", "false")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    odd.write_text("22")
    os.utime(same, (1, 1))  # a status with locks would write this into the index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert (folder_commit(str(tmp_path)) or "").endswith(" with changes")
    assert (tmp_path / ".git" / "index").read_bytes() == index


def test_packages_that_the_users_code_imports_are_recorded_and_compared(
    tiny: Spec, make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "imports_packages.py").write_text(
        "import pytest as p\nfrom rich.console import Console\nimport os\n"
        "exec('def of_no_module(): ...', made := {})\nof_no_module = made['of_no_module']\n"
        "class Unbound:\n    __class__ = property(lambda self: 1 / 0)\nproxy = Unbound()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("imports_packages")
    used = used_packages(["hypothesis:given", "torch.optim:SGD", "cdgrad:attach"])
    assert {name: used.get(name) for name in ("pytest", "rich", "hypothesis")} == {
        name: version(name) for name in ("pytest", "rich", "hypothesis")
    }
    assert not {"torch", "cdgrad"} & used.keys()


NEW, OLD, NONE = {"timm": "1.0.1"}, {"timm": "1.0.0"}, dict[str, str]()


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([OLD, NEW, OLD, NEW], "timm (1.0.0, 1.0.1), but those of one seed do not"),
        ([OLD, OLD, NEW, NEW], "timm (1.0.0, 1.0.1), so arms may differ in more than their setting"),
        ([OLD, NONE, OLD, NONE], "timm (1.0.0, absent), but those of one seed do not"),
        ([OLD, NONE, OLD, OLD], "timm (1.0.0, absent), so arms may differ in more than their setting"),
        ([NONE, NONE, OLD, OLD], ""),
        ([None, OLD, None, OLD], ""),
    ],
    ids=["later", "one arm", "vanished", "vanished from one arm", "another arm's", "former version"],
)
def test_packages_that_changed_or_vanished_are_named(
    tiny: Spec, make_run: Callable[..., Run], packages: list[dict[str, str] | None], said: str
):
    """An import that is tried, and whose package is removed, leaves the code as it is."""
    runs = [
        make_run(arm, seed, 5.0, environment={} if used is None else {"packages": used})
        for (arm, seed), used in zip(product(tiny.arms, (0, 1)), packages, strict=True)
    ]
    differ = [remark for remark in remarks(Results.of(tiny, runs)) if "The runs differ in" in remark]
    assert [said in remark for remark in differ] == [True] * bool(said)

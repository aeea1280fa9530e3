import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_study import TINY, without_figures, without_workers
from torch import nn

from cdgrad import cli
from cdgrad.diagnostics import roughness
from cdgrad.study import models
from cdgrad.study.spec import load

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 4))


def run(capsys, *arguments):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["train", "--help"]])
def test_help_needs_neither_torch_nor_the_extras(arguments):
    heavy = "torch", "scipy", "matplotlib", "rich", "sklearn", "numba", "jax"
    code = (
        "import sys\nfrom cdgrad import cli\n"
        f"try:\n    cli.main({arguments})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"loaded = {heavy} and set({heavy}) & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if arguments == ["--help"]:
        assert all(command in done.stdout for command in ("study", "report", "train", "inspect", "bench"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run or resume a paired study"),
        (["nonesuch"], "invalid choice: 'nonesuch'"),
        (["study"], "SPEC"),
        (
            ["study", "nonesuch"],
            "no study 'nonesuch': neither a TOML file nor one of the",
        ),
        (["study", "quickstart", "--workers", "0"], "must be an integer of at least 1, got '0'"),
        (["study", "quickstart", "--engine", "slurm"], "invalid choice: 'slurm'"),
        (["study", "quickstart", "--address", "auto"], "--address needs --engine ray; local workers"),
        (["study", "quickstart", "--gpus-per-run", "0.5"], "--gpus-per-run needs --device cuda"),
        (["study", "quickstart", "--gpus-per-run", "no"], "must be a positive number, got 'no'"),
        (["report", "out", "--target", "nan"], "must be a number, got 'nan'"),
        (["bench", "--rounds", "0"], "must be an integer of at least 1, got '0'"),
        (["bench", "--networks", "vgg"], "invalid choice: 'vgg'"),
        (["bench", "--out", "no/such/file.json"], "there is no folder no/such; create it first"),
        (["train", "quickstart", "--arm", "adam"], "quickstart has no arm 'adam'; it has sgd"),
        (["train", "quickstart", "--cell", "one"], "quickstart has no cell 'one'; it has "),
        (["train", "quickstart", "--seed", "-1"], "--seed"),
        (
            ["train", "quickstart", "--seed", "9223372036854775808"],
            "an integer of at most 9223372036854775807",
        ),
        (["train", "quickstart", "--threads", "9" * 5000], "must be an integer of at most 100000, got '999"),
        (["study", "quickstart", "--workers", "\u0663"], "must be an integer of at least 1, got"),
        (["inspect", "--image-shape", "3x100000x32"], "must be like 3x32x32"),
        (["inspect", "--direction", "depth"], "invalid choice: 'depth'"),
        (["inspect", "--image-shape", "32x32"], "must be like 3x32x32, channels first, got '32x32'"),
        (["inspect", "--image-shape", "32x32x3"], "has the channels first, like 3x32x32; got '32x32x3'"),
        (["inspect", "--checkpoint", "net.pt"], "use --weights net.pt"),
        (["inspect", "--classes", "0"], "must be an integer of at least 1, got '0'"),
    ],
)
def test_misuse_is_status_2_and_says_what_is_allowed(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "/nonesuch"], "/nonesuch holds no study"),
        (["inspect", "nonesuch"], "unknown model 'nonesuch'; give module:callable or one of small-cnn,"),
        (["inspect", "torch.nn:Nonesuch"], "torch.nn:Nonesuch cannot be imported"),
        (["inspect", "math:pi"], "math:pi must be callable"),
        (["inspect", "--include", "nonesuch*"], "nonesuch*"),
        (["inspect", "vgg11-bn", "--image-shape", "1x8x8"], "vgg11-bn takes images of at least 32 x 32"),
        (["inspect", "--weights", os.devnull], "is not a regular file; name a file that holds a state dict"),
        (["inspect", "--weights", "/nonesuch"], "--weights /nonesuch cannot be read"),
    ],
)
def test_a_failure_is_status_1_and_one_line(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_invalid_specification_is_status_1_and_one_line(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("seeds = 3")
    status, _, err = run(capsys, "study", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "out"))
    assert (status, err) == (1, "cdgrad: bad: baseline is missing\n")
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_read_end_a_study_before_its_plan_and_its_runs(capsys, tmp_path):
    spec = tmp_path / "typo.toml"
    spec.write_text(load("quickstart").text.replace('"digits"', '"digit"'))
    status, out, err = run(capsys, "study", str(spec), "--out", str(tmp_path / "out"))
    assert (status, out) == (1, "")
    assert err.startswith("cdgrad: task.data: there is no folder digit ")
    assert err.count("\n") == 1


def test_a_missing_torch_is_named_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, err = run(capsys, "inspect")
    assert (status, err) == (1, "cdgrad: torch is not installed; in a clone of cdgrad, run pip install .\n")


def test_a_missing_extra_is_named_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = run(capsys, "report", ".")
    assert (status, err.count("\n")) == (1, 1)
    assert "in a clone of cdgrad, run pip install '.[study]'" in err


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(capsys, monkeypatch):
    monkeypatch.setattr("cdgrad.study.spec.load", lambda source: 1 / 0)
    status, out, err = run(capsys, "study", "x")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("cdgrad: unexpected ZeroDivisionError: division by zero; the traceback is in ")
    file = Path(err.partition(" is in ")[2].partition(",")[0])
    assert "1 / 0" in file.read_text()
    file.unlink()


class FullDisk(io.RawIOBase):
    """What is buffered for it can be written nowhere, as to /dev/full."""

    def writable(self):
        return True

    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_a_full_disk_does_not_take_is_an_error_of_the_command(capsys, monkeypatch, buffered):
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(io.BufferedWriter(FullDisk()), write_through=not buffered)
    )
    assert cli.main(["inspect", "small-cnn"]) == 1
    line = "cdgrad: cannot write the output: No space left on device; free some space, and run it again\n"
    assert capsys.readouterr().err == line
    assert sys.stdout.closed  # else Python writes at its end, and complains in lines of its own


def test_closed_streams_are_no_error(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    without_workers(monkeypatch)
    without_figures(monkeypatch)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python starts after 2>&-
    assert cli.main(["study", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "runs")]) == 0
    assert os.get_inheritable(sys.stderr.fileno())  # workers have the same streams
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_inspect_prints_the_selection(capsys):
    status, out, _ = run(capsys, "inspect")
    assert status == 0
    assert "features.0.weight" in out
    assert "head.weight" in out.partition("left alone")[2]
    _, along_input, _ = run(capsys, "inspect", "small-cnn", "--direction", "input", "--linear")
    assert "head.weight" in along_input.partition("left alone")[0]


def test_inspect_counts_what_a_deep_network_leaves_alone(capsys):
    _, out, _ = run(capsys, "inspect", "resnet20")
    processed, _, left = out.partition("left alone")
    assert processed.count(".weight") == 19
    lines = left.splitlines()
    assert lines[1].split("  ")[0] == "features.1.weight and 37 more"
    assert "head.bias" in left
    assert lines[-1] == "print(cdgrad.select(model)) lists all of them"
    assert len(lines) == 5


def test_inspect_says_where_nothing_is_to_direct(capsys, tmp_path):
    assert run(capsys, "inspect", "torch.nn:Identity")[1] == "nothing to direct: the model has no parameter\n"
    weights = tmp_path / "weights.pt"
    torch.save(NET.state_dict(), weights)
    _, out, _ = run(capsys, "inspect", f"{__name__}:NET", "--exclude", "0.*", "--weights", str(weights))
    assert out.startswith("nothing to direct\n\nleft alone")
    assert "roughness" not in out


def test_inspect_takes_a_module_of_the_users(capsys):
    status, out, _ = run(capsys, "inspect", f"{__name__}:NET", "--exclude", "2.*")
    assert status == 0
    assert "0.weight" in out


def test_inspect_lists_names_that_steer_no_terminal(capsys, monkeypatch):
    model = nn.Sequential()
    model.add_module("a\x1b[31m\nb", nn.Conv2d(3, 4, 3))
    monkeypatch.setattr("cdgrad.commands.inspect.load_model", lambda *_: model)
    assert cli.main(["inspect"]) == 0
    out = capsys.readouterr().out
    assert "a [31m b.weight" in out
    assert "\x1b" not in out


def test_a_path_that_is_too_long_is_a_line_of_its_own(capsys):
    assert cli.main(["train", "9" * 400]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cdgrad: cannot use '999")
    assert "too long; give another path" in error


@pytest.mark.parametrize("name", models.BUILTIN)
def test_inspect_knows_every_builtin_network(capsys, name):
    status, out, err = run(capsys, "inspect", name)
    assert (status, err) == (0, "")
    assert "features.0.weight" in out.partition("left alone")[0]
    assert max(map(len, out.splitlines())) <= 100


def for_a_task(image_shape, classes):
    return nn.Conv2d(image_shape[0], classes, 3)


def test_inspect_builds_for_the_images_and_classes_it_is_given(capsys):
    shape = ["--image-shape", "2x8x8", "--classes", "7"]
    _, out, _ = run(capsys, "inspect", "resnet20", *shape, "--linear", "--include", "head.weight")
    assert "7x64" in out
    _, own, _ = run(capsys, "inspect", f"{__name__}:for_a_task", *shape)
    assert "7x2x3x3" in own


def test_inspect_measures_the_roughness_of_a_checkpoint(capsys, tmp_path):
    state = NET.state_dict()
    state["0.weight"] = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 3, 3).contiguous()
    torch.save(state, tmp_path / "net.pt")
    status, out, _ = run(capsys, "inspect", f"{__name__}:NET", "--weights", str(tmp_path / "net.pt"))
    assert status == 0
    assert f"{roughness(state['0.weight']):.3f}" in out


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_file_that_is_no_checkpoint_is_refused(capsys, tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    status, _, err = run(capsys, "inspect", "--weights", str(tmp_path / "net.pt"))
    assert (status, err.count("\n")) == (1, 1)
    assert "is not a state dict" in err


def test_a_checkpoint_of_another_network_is_refused(capsys, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    status, _, err = run(capsys, "inspect", "--weights", str(tmp_path / "net.pt"))
    assert (status, err.count("\n")) == (1, 1)
    assert "does not fit small-cnn" in err


SPEC = """
baseline = "sgd"
seeds = 2
workers = 1
task = { data = "fake", train = 32, validation = 32 }
model = { name = "small-cnn", width = 2 }
schedule = { epochs = 2, batch = 16 }
optimizer = { name = "torch.optim:SGD", lr = 0.1 }
arms.sgd = {}
arms.directed = { metric = "sobolev:lam=0.01" }
"""


def test_train_prints_epochs_and_saves_weights(capsys, tmp_path):
    (tmp_path / "tiny.toml").write_text(SPEC)
    weights = tmp_path / "net.pt"
    arguments = ["--arm", "directed", "--seed", "3", "--weights", str(weights)]
    status, out, _ = run(capsys, "train", str(tmp_path / "tiny.toml"), *arguments)
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["epoch", "1", "2"]
    assert max(map(len, lines[:3])) <= 80
    assert "directed, seed 3: ok, test error" in out
    assert "features.0.weight" in torch.load(weights)


def test_study_ends_with_table_plot_and_records(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.toml").write_text(SPEC)
    command = [sys.executable, "-m", "cdgrad", "study", "tiny.toml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paired difference to sgd" in done.stdout
    for name in ("report.html", "report.md", "runs.csv", "study.sqlite", "paired_differences.png"):
        assert f"out/{name}" in done.stdout
        assert (tmp_path / "out" / name).stat().st_size > 0
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *command[3:]) == (0, done.stdout, "")

"""``cdgrad train``: overrides, checkpoint, curves."""

import dataclasses
import os
import pickle
import sys
import tempfile

import pytest
import torch

from cdgrad import cli
from cdgrad.commands import train as train_command
from cdgrad.commands.train import run_single, setting_of
from cdgrad.study import StudyError
from cdgrad.study.spec import parse
from cdgrad.study.train.loop import train


def test_overrides_reach_every_table_and_the_arm(tiny):
    keys = ["task.train=64", "model.width=3", "schedule.epochs = 2", "schedule.decay=none", "lam=5"]
    keys += ["optimizer.lr=0.7", "optimizer.nesterov=true", "rescale=norm", "linear=true"]
    setting = setting_of(tiny, "", "directed", keys)
    assert (setting.task.train, setting.model.arguments) == (64, {"width": 3})
    assert (setting.schedule.epochs, setting.schedule.decay) == (2, "none")
    assert (setting.metric, setting.rescale, setting.linear) == ("reweighted:lam=5", "norm", True)
    assert setting.optimizer.lr == 0.7
    assert setting.optimizer.arguments == {"momentum": 0.9, "nesterov": True}
    assert setting_of(tiny, "", "directed", []) == tiny.setting("", "directed")


def test_a_renamed_optimizer_keeps_the_other_keys_in_any_order(tiny):
    keys = ["optimizer.lr=0.01", "optimizer.name=torch.optim:Adam", "optimizer.eps=1e-6"]
    for order in (keys, keys[::-1]):
        optimizer = setting_of(tiny, "", "sgd", order).optimizer
        assert (optimizer.name, optimizer.lr) == ("torch.optim:Adam", 0.01)
        assert optimizer.arguments == {"eps": 1e-6}, "the momentum was the other optimizer's"


def test_the_metric_may_be_replaced(tiny):
    assert setting_of(tiny, "", "sgd", ["metric=sobolev: lam=0.01"]).metric == "sobolev:lam=0.01"
    assert setting_of(tiny, "", "directed", ["metric=none"]).metric == "none"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set takes key=value, such as schedule.epochs=3; got 'epochs'"),
        ("schedule.epoch=3", "unknown key schedule.epoch; did you mean schedule.epochs?"),
        ("schedule.epochs=many", "schedule.epochs must be an integer of at least 1; got 'many'"),
        ("metric=sobolef:lam=1", "--set metric: "),
        ("metric=none", "--set metric: rescale has no effect with metric none"),
        ("width=3", "unknown key width"),
        ("lr=3", "unknown key lr; did you mean optimizer.lr?"),
    ],
)
def test_an_override_that_is_not_possible_is_explained(tiny, override, message):
    rescaled = dataclasses.replace(tiny.arms["directed"], rescale="norm")
    spec = dataclasses.replace(tiny, arms={"directed": rescaled})
    with pytest.raises(StudyError) as caught:
        setting_of(spec, "", "directed", [override])
    assert message in str(caught.value)


@pytest.fixture
def spec_file(tiny_text, tmp_path):
    (tmp_path / "tiny.toml").write_text(tiny_text.replace("epochs = 1", "epochs = 3"))
    return str(tmp_path / "tiny.toml")


def test_a_killed_run_goes_on_and_prints_what_is_new(tiny, tmp_path, capsys):
    class End(BaseException):
        pass

    def stop(epoch, measured):
        if epoch == 3:
            raise End

    setting = setting_of(tiny, "", "directed", ["schedule.epochs=4"])
    path = tmp_path / "run.ckpt"
    with pytest.raises(End):
        train(setting, 1, stop, checkpoint=path, every=0)
    outcome = run_single("directed", setting, 1, checkpoint=path)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["epoch", "3", "4"]
    whole = train(setting, 1, lambda epoch, measured: None)
    assert (outcome.error, outcome.epochs) == (whole.error, whole.epochs)
    assert not path.exists()


@pytest.mark.parametrize("flag", ["--checkpoint", "--weights"])
@pytest.mark.parametrize("content", [b"my notes", b"", pickle.dumps({"a": 1})])
def test_a_file_of_the_users_is_refused_before_training_and_left(spec_file, tmp_path, capsys, flag, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    assert cli.main(["train", spec_file, flag, str(path)]) != 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "move it away, or name another file" in err
    assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "tiny.toml"]


@pytest.mark.parametrize("flag", ["--checkpoint", "--weights"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder; name a file"),
        ("pipe", "is not a regular file"),
        ("x" * 300, "File name too long"),
        ("/proc/w.pt", "cannot be written: No such file or directory; name a file in another folder"),
    ],
)
def test_where_no_file_can_be_written_nothing_is_trained(spec_file, tmp_path, capsys, flag, name, message):
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["train", spec_file, flag, str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "tiny.toml"]


def test_weights_are_kept_where_their_file_appears_during_the_run(spec_file, tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.pt"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_single = train_command.run_single

    def and_then_another_file(*arguments, **options):
        outcome = run_single(*arguments, **options)
        path.write_text("somebody else's")
        return outcome

    monkeypatch.setattr(train_command, "run_single", and_then_another_file)
    assert cli.main(["train", spec_file, "--weights", str(path)]) == 0
    saved = capsys.readouterr().out.splitlines()[-1].removeprefix("weights: ")
    assert "features.0.weight" in torch.load(saved)
    assert path.read_text() == "somebody else's"


def test_the_curves_are_written_for_tensorboard(spec_file, tmp_path, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert cli.main(["train", spec_file, "--tensorboard", str(tmp_path / "tb")]) == 0
    out = capsys.readouterr().out.splitlines()
    kept = events.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert {"loss", "validation_error", "cosine", "lr"} <= set(kept.Tags()["scalars"])
    loss = [(point.step, f"{point.value:.4g}") for point in kept.Scalars("loss")]
    assert loss == [(epoch, out[epoch].split()[1]) for epoch in (1, 2, 3)]


def test_without_tensorboard_its_extra_is_named(spec_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert cli.main(["train", spec_file, "--tensorboard", str(tmp_path / "tb")]) == 1
    assert "in a clone of cdgrad, run pip install '.[tensorboard]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--device", "nonsense"], 1, "unknown device 'nonsense'; expected cpu, cuda or cuda:N"),
        (["--weights", "no/such/net.pt"], 2, "there is no folder no/such; create it first"),
        (["--tensorboard", __file__], 1, "cannot be written: File exists"),
        (["--set", "optimizer.momentum=-1"], 1, "torch.optim:SGD refuses its arguments (lr, momentum): Inv"),
        (["--set", "optimizer.lr=1e308"], 1, "sgd, seed 0 failed: RuntimeError: value cannot be converted"),
        (["--device", "meta"], 1, "device meta: PyTorch finds no such device here; use cpu"),
        (["--set", "optimizer.momentum=nan"], 1, "--set: optimizer.momentum must be a number; got nan"),
        (["--arm", "directed", "--set", "optimizer.differentiable=true"], 1, "(differentiable=True)"),
        (["--arm", "directed", "--set", "model.name=torch.nn:Identity"], 1, "optimizer got an empty"),
    ],
)
def test_what_cannot_be_is_one_line(spec_file, capsys, arguments, status, message):
    assert cli.main(["train", spec_file, "--set", "schedule.epochs=1", *arguments]) == status
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(spec_file, capsys):
    assert cli.main(["train", spec_file, "--device", "cuda"]) == 1
    assert "device cuda: PyTorch finds no CUDA device" in capsys.readouterr().err


def test_the_users_own_code_is_run_too(tmp_path, capsys, monkeypatch):
    (tmp_path / "oneown.py").write_text(
        "def run(seed, arm):\n    arm.report(1, loss=seed)\n    return {'error': arm.values['lr']}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.toml").write_text(
        'baseline = "a"\nseeds = 1\nentry = "oneown:run"\narms.a.values.lr = 3\n'
    )
    assert cli.main(["train", str(tmp_path / "own.toml"), "--seed", "2", "--set", "lr=4.5"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["1", "2"]
    assert "a, seed 2: ok, test error 4.50 %" in out
    assert cli.main(["train", str(tmp_path / "own.toml"), "--set", "rl=1"]) == 1
    assert "never read arm.values['rl']" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "own.toml"), "--checkpoint", "x"]) == 1
    assert "which runs its own training loop" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "own.toml"), "--weights", "net.pt"]) == 2
    assert "--weights is not available with `entry`" in capsys.readouterr().err
    setting = setting_of(parse((tmp_path / "own.toml").read_text(), "own"), "", "a", ["task.size=3"])
    assert setting.values == {"lr": 3, "task.size": 3}

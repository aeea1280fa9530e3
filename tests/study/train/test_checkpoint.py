"""A run that was killed between two epochs resumes to the same bits, and never from another run's file."""

# ruff: noqa: NPY002, as networks of users draw

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn

from cdgrad.study import StudyError, data
from cdgrad.study.callables import modules_beside
from cdgrad.study.spec import Model, Optimizer
from cdgrad.study.train.loop import train
from cdgrad.study.train.ranks import Ranks
from cdgrad.study.train.state import TrainingState


class Killed(BaseException):
    """Stands for the end of the process."""


def dropout_network(image_shape, classes):
    """Draws from the global generator in every step."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def drawing(image_shape, classes):
    network = dropout_network(image_shape, classes)
    network(torch.zeros(2, *image_shape))  # a lazy layer must see a batch before the optimizer does
    return network


@pytest.fixture
def setting(tiny):
    def make(schedule=None, **changes):
        base = tiny.setting("", "directed")
        longer = dataclasses.replace(base.schedule, epochs=4, **(schedule or {}))
        return dataclasses.replace(base, **({"schedule": longer} | changes))

    return make


def killed_after(setting, epochs, path, seed=0):
    """The checkpoint is that of the epoch before the one in which the process ends."""

    def on_epoch(epoch, measured):
        if epoch > epochs:
            raise Killed

    with pytest.raises(Killed):
        train(setting, seed, on_epoch, checkpoint=path, every=0)


def assert_same(a, b):
    assert (a.status, a.error, a.epochs) == (b.status, b.error, b.epochs)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        ({}, {"optimizer": Optimizer("torch.optim:SGD", 0.1, {"momentum": 0.9, "nesterov": True})}),
        ({"warmup": 2}, {"optimizer": Optimizer("torch.optim:AdamW", 0.01)}),
        ({"ema": 0.9}, {}),
        ({"accumulate": 3, "clip": 0.5, "label_smoothing": 0.1}, {}),
        ({}, {"model": Model(f"{__name__}:drawing")}),
        ({}, {"permute": True, "centralize": True, "metric": "sobolev:lam=0.01"}),
        ({"precision": "bfloat16", "channels_last": True}, {}),
    ],
    ids=["SGD", "AdamW", "EMA", "accumulate", "dropout", "permuted", "bfloat16"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(setting, tmp_path, schedule, changes):
    run = setting(schedule, **changes)
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, augment=("pad-crop", "flip")))
    path, whole = tmp_path / "run.ckpt", train(run, 0, lambda epoch, measured: None)
    for after in (1, 3):
        killed_after(run, after, path)
        seen = []
        resumed = train(run, 0, lambda epoch, _, seen=seen: seen.append(epoch), checkpoint=path, every=0)
        assert seen == list(range(after + 1, 5))
        assert_same(resumed, whole)
        assert list(tmp_path.iterdir()) == []  # the run is over


def test_a_run_may_be_killed_again_and_again(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    for epoch in (1, 2, 3):
        killed_after(setting(), epoch, path)
    resumed = train(setting(), 0, lambda epoch, measured: None, checkpoint=path)
    assert_same(resumed, train(setting(), 0, lambda epoch, measured: None))


def test_saves_are_no_more_frequent_than_asked(setting, tmp_path):
    saved = []
    path = tmp_path / "run.ckpt"
    train(setting(), 0, lambda epoch, measured: saved.append(path.exists()), checkpoint=path, every=3600)
    assert saved == [False] * 4
    train(setting(), 0, lambda epoch, measured: saved.append(path.exists()), checkpoint=path, every=0)
    assert saved[4:] == [False, True, True, True]


@pytest.mark.parametrize("kept", [0, 100, -200])
def test_a_damaged_checkpoint_starts_over_with_a_warning(setting, tmp_path, kept):
    path = tmp_path / ".cdgrad-checkpoints" / "run.ckpt"
    killed_after(setting(), 2, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.warns(UserWarning, match=r"cannot be read \(\w+\), so the run starts over"):
        resumed = train(setting(), 0, lambda epoch, measured: None, checkpoint=path)
    assert_same(resumed, train(setting(), 0, lambda epoch, measured: None))


@pytest.mark.parametrize(
    ("seed", "changes", "message"),
    [(1, {}, r"of another run \(seed 0 is not 1\)"), (0, {"metric": "l2"}, r"of another run \(fingerprint")],
)
def test_the_checkpoint_of_another_run_is_refused_and_left(setting, tmp_path, seed, changes, message):
    path = tmp_path / "run.ckpt"
    killed_after(setting(), 2, path)
    before = path.read_bytes()
    with pytest.raises(StudyError, match=message):
        train(setting(**changes), seed, lambda epoch, measured: None, checkpoint=path, every=0)
    assert path.read_bytes() == before


def test_a_run_does_not_go_on_with_other_images(setting, tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    killed_after(setting(), 2, path)
    older = torch.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(data, "identity", lambda task: "changed")
        with pytest.raises(StudyError, match=r"of another run \(data 'fake' is not 'changed'\)"):
            train(setting(), 0, lambda epoch, measured: None, checkpoint=path)
    del older["data"]
    torch.save(older, path)
    seen = []
    train(setting(), 0, lambda epoch, measured: seen.append(epoch), checkpoint=path)
    assert seen == [3, 4], "a file that does not name its images resumes"


def test_what_is_no_checkpoint_of_a_run_is_refused(setting, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(StudyError, match="is not the checkpoint of a run"):
        train(setting(), 0, lambda epoch, measured: None, checkpoint=tmp_path / "weights.pt")


def test_loading_runs_no_code(setting, tmp_path):
    path = tmp_path / "run.ckpt"

    class Evil:
        def __reduce__(self):
            return (path.with_name("ran").touch, ())

    torch.save({"format": Evil()}, path)
    with pytest.raises(StudyError, match="is not the checkpoint of a run"):
        train(setting(), 0, lambda epoch, measured: None, checkpoint=path)
    assert not path.with_name("ran").exists()


def test_a_file_left_half_written_is_not_the_checkpoint(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    killed_after(setting(), 2, path)
    (tmp_path / ".cdgrad-run.ckpt.part").write_bytes(path.read_bytes()[:500])
    resumed = train(setting(), 0, lambda epoch, measured: None, checkpoint=path, every=0)
    assert_same(resumed, train(setting(), 0, lambda epoch, measured: None))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_is_an_error(setting, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot be written"):
        train(setting(), 0, lambda epoch, measured: None, checkpoint=tmp_path / "file" / "run.ckpt", every=0)


class NumpyAndPython(nn.Module):
    """Draws from numpy's and Python's generators when it is made and in every step."""

    def __init__(self, image_shape, classes):
        super().__init__()
        scale = np.random.normal() + random.gauss()
        self.layers = nn.Sequential(nn.Conv2d(image_shape[0], 2, 3), nn.Flatten(), nn.Linear(72, classes))
        with torch.no_grad():
            self.layers[0].weight.mul_(scale)

    def forward(self, images):
        kept = np.random.random() * random.random() if self.training else 1.0
        return self.layers(images * kept)


def test_a_network_that_draws_from_numpy_and_python_is_seeded_and_resumes(setting, tmp_path):
    changed = setting(model=Model(f"{__name__}:NumpyAndPython"))
    before = random.getstate(), np.random.get_state()[1].tolist()
    whole = train(changed, 0, lambda *_: None)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(9)
    np.random.seed(9)

    def kill(epoch, _):
        if epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        train(changed, 0, kill, checkpoint=tmp_path / "run.pt", every=0)
    resumed = train(changed, 0, lambda *_: None, checkpoint=tmp_path / "run.pt", every=0)
    assert resumed.epochs == whole.epochs
    both = setting({"diagnostics": ("divergence", "sharpness")}, model=changed.model)
    measured = train(both, 0, lambda *_: None).epochs
    assert [epoch["loss"] for epoch in measured] == [epoch["loss"] for epoch in whole.epochs]
    assert 0 < measured[0]["divergence"] < 1e-4


def test_a_rank_that_resumes_draws_dropout_masks_of_its_own_and_the_first_rank_the_same(tiny):
    first, second = (
        TrainingState(tiny.setting("", "sgd"), 0, torch.device("cpu"), Ranks(r, 2)) for r in (0, 1)
    )
    torch.manual_seed(0)
    first.epochs.append({"loss": 1.0})
    content, expected, draws = first.state_dict(), torch.rand(4), []
    for state in (first, second):
        state.load_state_dict(content)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], expected)
    assert not torch.equal(*draws)


EDITED = """
from torch import nn

def net(image_shape, classes):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.{}(), nn.Flatten(), nn.Linear(72, classes))
"""


def test_a_run_is_never_continued_with_other_code(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edited_net.py").write_text(EDITED.format("ReLU"))
    run, own = setting(model=Model("edited_net:net")), tmp_path / ".cdgrad-checkpoints" / "run.pt"
    with modules_beside(str(tmp_path)):
        for path in (tmp_path / "run.pt", own):
            killed_after(run, 2, path)
        seen = []
        train(run, 0, lambda epoch, _: seen.append(epoch), checkpoint=own, every=0)
        assert seen[0] > 1  # unchanged code resumes
        killed_after(run, 2, own)
        (tmp_path / "edited_net.py").write_text(EDITED.format("Tanh"))
        with pytest.raises(StudyError, match=r"another run \(edited_net.py changed since it was saved\)"):
            train(run, 0, lambda *_: None, checkpoint=tmp_path / "run.pt")
        with pytest.warns(UserWarning, match="edited_net.py changed since .* so the run starts over"):
            train(run, 0, lambda epoch, _: seen.append(epoch), checkpoint=own)
        assert seen[-4:] == [1, 2, 3, 4]


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts_and_a_studys_file_stays(setting, tmp_path):
    own = tmp_path / ".cdgrad-checkpoints" / "run.pt"
    killed_after(setting(), 2, own)
    content = torch.load(own, weights_only=True)
    assert content["seconds"] > 0
    torch.save({**content, "seconds": 1000.0}, own)
    outcome = train(setting(), 0, lambda *_: None, checkpoint=own, every=1e9)
    assert outcome.earlier == 1000
    assert own.exists()  # until the study has recorded the run

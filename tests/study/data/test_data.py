import dataclasses

import numpy as np
import pytest
import torch

from cdgrad.study import StudyError, data
from cdgrad.study.data import cache, resident
from cdgrad.study.data.splits import channel_statistics, take, with_label_noise
from cdgrad.study.spec import Task


@pytest.mark.parametrize(("name", "count"), [("fake", 400), ("digits", 1797)])
def test_the_parts_are_disjoint_and_together_everything(name, count):
    parts = data.load(Task(name, 100, 50), seed=3)
    images = torch.cat([parts.train.images(), parts.validation.images(), parts.test.images()])
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [100, 50, count - 150]
    assert len(images.flatten(1).unique(dim=0)) == count
    assert images.dtype == torch.float32
    assert sorted(set(parts.test.labels.tolist())) == list(range(parts.classes))


def test_the_seed_draws_the_split():
    task = Task("fake", 100, 50)
    first, again, other = (data.load(task, seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.images(), again.train.images())
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.train.labels, other.train.labels)


def test_images_are_normalized_by_the_training_part_alone():
    parts = data.load(Task("fake", 100, 50), seed=0)
    assert parts.train.images().mean().item() == pytest.approx(0, abs=1e-6)
    assert parts.train.images().std().item() == pytest.approx(1, abs=1e-6)
    assert parts.test.images().mean().item() != pytest.approx(0, abs=1e-6)


def test_parts_that_leave_nothing_to_test_on_are_refused():
    with pytest.raises(StudyError, match=r"fake has 400 images: .* = 400 leaves none"):
        data.load(Task("fake", 300, 100), seed=0)


def test_a_part_shares_its_pixels_here_and_takes_its_own_to_another_device():
    part = data.load(Task("fake", 100, 50), seed=0).validation
    here = part.to(torch.device("cpu"))
    assert here.pixels is part.pixels
    moved = part.to(torch.device("meta"))
    assert (moved.device.type, len(moved), len(moved.pixels)) == ("meta", 50, 50)
    assert moved.images(slice(8)).shape == (8, 1, 8, 8)


def test_batches_are_rows_of_the_part_in_the_wanted_layout():
    part = data.load(Task("fake", 100, 50), seed=0).validation
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(part.images(rows), part.images()[rows])
    colored = data.Split(part.pixels.expand(-1, 3, -1, -1), part.rows, part.labels, part.mean, part.std)
    last = colored.to(torch.device("cpu"), torch.channels_last).images(rows)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, colored.images(rows))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_channel_without_contrast_stays_finite(dtype):
    pixels = torch.stack([torch.full((4, 2, 2), 7), torch.arange(16).view(4, 2, 2)], 1).to(dtype)
    mean, std = channel_statistics(pixels, [0, 1, 2, 3])
    assert mean.flatten().tolist() == [7, 7.5]
    assert std.flatten().tolist() == pytest.approx([1, torch.arange(16.0).std().item()])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_statistics_of_many_images_are_numpy_s(dtype):
    values = np.random.default_rng(0).integers(0, 2, size=(5000, 2, 2, 2)).astype(np.uint8)
    values[:, 1] *= 9
    rows = np.arange(4500)
    mean, std = channel_statistics(torch.tensor(values).to(dtype), rows)
    expected = values[:4500].astype(np.float64)
    assert mean.flatten().tolist() == pytest.approx(expected.mean((0, 2, 3)), rel=1e-6)
    of_channel = [expected[:, c].std(ddof=1) for c in range(2)]  # about 0.5 and 4.5
    assert std.flatten().tolist() == pytest.approx(of_channel, rel=1e-6)


@pytest.mark.parametrize("share", [0.004, 0.2, 0.4])  # of 300 images 0.004 is one
def test_label_noise_makes_its_share_of_the_training_labels_wrong_and_no_other(share):
    clean, noisy = (data.load(Task("digits", 300, 400, label_noise=noise), seed=3) for noise in (0, share))
    assert int((noisy.train.labels != clean.train.labels).sum()) == round(300 * share)
    assert torch.equal(noisy.validation.labels, clean.validation.labels)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert torch.equal(noisy.train.images(), clean.train.images())
    again = data.load(Task("digits", 300, 400, label_noise=share), seed=3)
    assert torch.equal(again.train.labels, noisy.train.labels)


def test_wrong_labels_are_the_other_classes_equally_often():
    labels = torch.zeros(90_000, dtype=torch.int64) + 3
    whole = data.load(Task("fake", 100, 50), seed=0).train
    split = data.Split(whole.pixels, labels, labels, whole.mean, whole.std)
    wrong = with_label_noise(split, 0.5, 10, np.random.default_rng(0)).labels.bincount(minlength=10)
    assert wrong[3] == 45_000
    others = torch.cat([wrong[:3], wrong[4:]])
    assert (others - 5000).abs().max() < 5 * 5000**0.5  # five standard deviations
    assert torch.equal(with_label_noise(split, 0.5, 1, np.random.default_rng(0)).labels, labels)


def test_decoded_pixels_stay_on_a_device_from_one_run_to_the_next(monkeypatch):
    monkeypatch.setattr(resident, "KEPT", {})
    meta = torch.device("meta")
    arrays = cache.Arrays(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6), "a file")
    one, other = (take(arrays, rows, torch.zeros(1), torch.ones(1)) for rows in ([1, 2], [3, 4, 5]))
    assert one.to(meta).pixels is other.to(meta).pixels
    assert (len(one.to(meta).pixels), len(one.to(meta).rows)) == (6, 2)
    assert one.to(meta).images().shape == (2, 1, 2, 2)
    # Neither what has no name nor what is large is kept: the images of the split are copied.
    unnamed = dataclasses.replace(arrays, source="")
    assert len(take(unnamed, [1, 2], torch.zeros(1), torch.ones(1)).to(meta).pixels) == 2
    monkeypatch.setattr(resident, "MOST_BYTES", 23)
    assert len(one.to(meta).pixels) == 2


@pytest.mark.parametrize("source", ["a file", ""])
def test_the_images_on_another_device_are_those_of_the_split(monkeypatch, source):
    monkeypatch.setattr(resident, "KEPT", {})
    pixels = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    split = take(cache.Arrays(pixels, torch.arange(6), source), [4, 2], torch.zeros(1), torch.ones(1))
    expected = split.images()
    monkeypatch.setattr(data.Split, "device", torch.device("meta"))  # so that the CPU is another one
    assert torch.equal(split.to(torch.device("cpu")).images(), expected)


def test_the_data_sets_on_a_device_are_bounded(monkeypatch):
    monkeypatch.setattr(resident, "KEPT", {})
    meta, pixels = torch.device("meta"), torch.zeros(1)
    kept = [resident.resident(name, pixels, meta) for name in "abcd"]
    assert resident.resident("a", pixels, meta) is kept[0]
    resident.resident("e", pixels, meta)
    assert [name for name, _ in resident.KEPT] == ["c", "d", "a", "e"]

import pytest
import torch

from cdgrad.study import StudyError, data
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

"""Laws of the random changes: what a seed decides, how often, and what never changes."""

import pytest
import torch

from cdgrad.study.data import TRANSFORMS, augment

NAMES = list(TRANSFORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def marked(n, channels=3, height=16, width=24):
    """Images whose every pixel differs from every other and from 0."""
    return 1 + torch.arange(n * channels * height * width, dtype=torch.float32).view(
        n, channels, height, width
    )


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [NAMES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_dtype_and_layout_stay_and_the_input_is_left_alone(names, dtype, layout):
    images = torch.randint(1, 200, (6, 3, 8, 12)).to(dtype).contiguous(memory_format=layout)
    before = images.clone()
    changed = augment(images, names, generator())
    assert (changed.shape, changed.dtype) == (images.shape, dtype)
    assert changed.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides(name):
    images = marked(32)
    torch.manual_seed(1)
    first = augment(images, [name], generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, [name], generator(3)))
    assert not torch.equal(first, augment(images, [name], generator(4)))


def test_nothing_named_is_nothing_done():
    images = marked(2)
    assert augment(images, [], generator()) is images


def test_half_of_the_images_are_mirrored_and_the_rest_are_not():
    images = marked(2000, 1, 2, 3)
    changed = augment(images, ["flip"], generator())
    mirrored = (changed == images.flip(3)).all((1, 2, 3))
    kept = (changed == images).all((1, 2, 3))
    assert torch.equal(mirrored, ~kept)
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def test_a_crop_is_the_image_moved_by_a_uniform_offset_with_zeros_behind_it():
    images = marked(6000, 1, 16, 24)
    changed = augment(images, ["pad-crop"], generator())
    counts = torch.zeros(5, 7)
    for up in range(-2, 3):
        for left in range(-3, 4):
            moved = torch.zeros_like(images)
            rows, columns = slice(max(0, -up), 16 - max(0, up)), slice(max(0, -left), 24 - max(0, left))
            from_rows, from_columns = (
                slice(max(0, up), 16 - max(0, -up)),
                slice(max(0, left), 24 - max(0, -left)),
            )
            moved[:, :, rows, columns] = images[:, :, from_rows, from_columns]
            counts[up + 2, left + 3] = (changed == moved).all((1, 2, 3)).sum()
    assert counts.sum() == len(images), "every image is one of the 35 shifts"
    expected = len(images) / 35
    assert ((counts - expected) ** 2 / expected).sum() < 65  # chi-squared, 34 degrees: p = 0.001


def test_all_channels_move_and_are_cut_together():
    one = marked(64, 1)
    three = one.expand(-1, 3, -1, -1)
    for name in NAMES:
        changed = augment(three, [name], generator())
        assert torch.equal(changed, augment(one, [name], generator()).expand(-1, 3, -1, -1))


def test_cutout_covers_a_square_around_a_uniform_pixel():
    images = marked(4000, 1, 16, 16)
    cut = augment(images, ["cutout"], generator()) == 0
    rows, columns = cut.any(3).squeeze(1), cut.any(2).squeeze(1)
    assert torch.equal(cut.squeeze(1), rows[:, :, None] & columns[:, None, :]), "a rectangle"
    for sides in (rows, columns):
        # A square of 8 around pixel c covers c - 4 to c + 3: 4 pixels at the near border, 5 at the far one.
        lengths = sides.sum(1).bincount(minlength=9)
        assert lengths.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
        assert sides[sides.sum(1) == 4][:, 0].all(), "only the near border leaves 4"
        share = lengths[8].item() / len(images)
        assert share == pytest.approx(9 / 16, abs=0.035)

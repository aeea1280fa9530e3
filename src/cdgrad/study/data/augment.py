"""Random changes of training images, a whole batch at once, on the device that holds it.

Every image draws its own change. There is no loop over images: a batch costs one gather or one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, names: Iterable[str], generator: torch.Generator) -> Tensor:
    """The images with the named changes, in the order of `names`; the input is left as it is.

    Args:
        images: normalized, of shape (n, _, height, width); 0 is the mean color.
        names: of `TRANSFORMS`.
        generator: on the device of the images; its state decides every draw.

    Returns:
        Images of the same shape, dtype and memory format.
    """
    changed = images
    for name in names:
        changed = TRANSFORMS[name](changed, generator)
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return changed.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def pad_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its side in both axes, zeros behind it.

    For 32 x 32 pixels: padded by 4 and cropped at random (He et al. 2015, arXiv 1512.03385, section 4.2).
    """
    n, _, height, width = images.shape
    up, left = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(images, (left, left, up, up))
    # A view: (n, channels, rows, columns, height, width).
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    which = torch.arange(n, device=images.device)
    return crops[which, :, _draw(n, 2 * up + 1, generator), _draw(n, 2 * left + 1, generator)]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    mirrored = _draw(len(images), 2, generator).bool()
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """A square of half the side, centered anywhere and cut at the border, set to 0 in each image.

    For 32 x 32 pixels 16 x 16 (DeVries and Taylor 2017, arXiv 1708.04552, section 4.1).
    """
    n, _, height, width = images.shape
    rows = _covered(n, height, generator)[:, None, :, None]
    columns = _covered(n, width, generator)[:, None, None, :]
    return images.masked_fill(rows & columns, 0)


TRANSFORMS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "pad-crop": pad_crop,
    "flip": flip,
    "cutout": cutout,
}


def _draw(n: int, below: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (n,), generator=generator, device=generator.device)


def _covered(n: int, side: int, generator: torch.Generator) -> Tensor:
    """For each image, which of the `side` positions the square covers; of shape (n, side)."""
    start = _draw(n, side, generator)[:, None] - side // 4
    position = torch.arange(side, device=generator.device)
    return (start <= position) & (position < start + side // 2)

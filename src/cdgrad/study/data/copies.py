"""Test images that training may see, too: then the error is partly that of memory."""

from __future__ import annotations

from hashlib import blake2b

from torch import Tensor

from cdgrad.study.data.cache import Arrays, Decoded

_AT_MOST = 1 << 30  # bytes of pixels that are compared: some 3 s, once a process


def repeated_images(decoded: Decoded) -> int | None:
    """How many images of the test split are equal, pixel by pixel, to one that training may draw.

    Where the seed draws the test split, it is the number of images that occur more than once in the data.
    None where the data is too large to be compared.
    """
    if sum(arrays.pixels.nbytes for arrays in (decoded.train, decoded.test) if arrays) > _AT_MOST:
        return None
    seen = _hashes(decoded.train)
    if decoded.test:
        return sum(value in seen for value in _each(decoded.test.pixels))
    return len(decoded.train.labels) - sum(count == 1 for count in seen.values())


def _hashes(arrays: Arrays) -> dict[bytes, int]:
    """How often each image occurs."""
    counts: dict[bytes, int] = {}
    for value in _each(arrays.pixels):
        counts[value] = counts.get(value, 0) + 1
    return counts


def _each(pixels: Tensor) -> list[bytes]:
    return [blake2b(image.tobytes(), digest_size=12).digest() for image in pixels.numpy()]

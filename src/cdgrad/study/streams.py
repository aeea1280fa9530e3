"""The random streams of a seed: each has a generator, so that draws from one do not change another.

The initialization and dropout draw from torch's own generator, which the seed itself starts. The numbers
are those of the records that exist, and never change.
"""

from __future__ import annotations

import numpy as np

SPLIT = 1
"""Which images train and which validate."""
ORDER = 2
"""The order of the training images."""
AUGMENTATION = 3
"""Their changes."""
PERMUTATION = 5
"""The channels of a permuted arm."""
# PERMUTATION's number, too. Harmless: the one orders channels, the other picks test images of an official
# split where ``task.test`` is a count, and what a run trains on does not depend on the pick.
TEST = 5
"""Which images test, where they are fewer than there are."""
LABEL_NOISE = 6
"""Which training images get a wrong label, and which."""
MEASUREMENT = 7
"""The mini-batches on which evidence measures gradients."""


def generator(seed: int, stream: int) -> np.random.Generator:
    """A new generator at the beginning of a stream."""
    return np.random.default_rng([seed, stream])


def number(seed: int, stream: int) -> int:
    """A seed, below 2^63, for a generator of another library that takes a single number."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))

"""What the tests of the operators share."""

import pytest
import torch


@pytest.fixture
def threads():
    """Sets torch's thread count, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

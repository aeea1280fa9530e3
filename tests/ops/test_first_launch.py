"""A GPU on which Triton does not work is served by plain torch operations, with the reason."""

from contextlib import nullcontext

import pytest
import torch

from cdgrad import channel_directed_

pytest.importorskip("triton")
from cdgrad.ops.triton import first_launch

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A GPU of compute capability 7.5, of which nothing is known yet; a launch counts."""
    launched = []
    monkeypatch.setattr(first_launch, "_refusals", {})
    monkeypatch.setattr(first_launch, "capturing_on", lambda device: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(first_launch.launch, "prepare_captures", launched.append)
    return launched


def failing(error):
    def prepare_captures(device):
        raise error

    return prepare_captures


def test_one_small_launch_shows_that_it_works(gpu, recwarn):
    assert [first_launch.refusal(GPU) for _ in range(3)] == [None] * 3
    assert gpu == [GPU]
    assert not recwarn


def test_what_the_launch_lacks_is_said_once_with_what_to_do(monkeypatch):
    monkeypatch.setattr(
        first_launch.launch,
        "prepare_captures",
        failing(RuntimeError("Failed to find C compiler.\nPlease specify via CC")),
    )
    with pytest.warns(
        UserWarning, match=r"C compiler.*plain torch operations.*gcc and python3-dev"
    ) as caught:
        reasons = {first_launch.refusal(GPU) for _ in range(3)}
    assert len(caught) == 1
    assert reasons == {
        "Triton failed to launch a kernel on cuda:0 (RuntimeError: Failed to find C compiler.)"
    }


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("lost")])
def test_errors_of_the_device_say_nothing_about_triton(monkeypatch, error):
    monkeypatch.setattr(first_launch.launch, "prepare_captures", failing(error))
    with pytest.raises(type(error)):
        first_launch.refusal(GPU)
    monkeypatch.setattr(first_launch.launch, "prepare_captures", lambda device: None)
    assert first_launch.refusal(GPU) is None


def test_gpus_older_than_triton_supports_are_not_tried(gpu, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    reason = first_launch.refusal(GPU)
    assert reason == "Triton needs a GPU of compute capability 7.0, and cuda:0 has 6.1"
    assert not gpu
    assert not recwarn


def test_nothing_is_tried_while_a_graph_is_captured(gpu, monkeypatch):
    monkeypatch.setattr(first_launch, "capturing_on", lambda device: True)
    assert first_launch.refusal(GPU) is None
    assert not gpu
    monkeypatch.setattr(first_launch, "capturing_on", lambda device: False)
    assert first_launch.refusal(GPU) is None
    assert gpu


def test_a_refused_device_is_not_chosen_and_not_taken(monkeypatch):
    monkeypatch.setattr(first_launch, "refusal", lambda device: "Triton is broken here")
    grad = torch.randn(4, 3)
    before = grad.clone()
    with pytest.raises(ValueError, match="Triton is broken here; use backend='auto'"):
        channel_directed_([grad], "reweighted:lam=3", backend="triton")
    assert torch.equal(grad, before)

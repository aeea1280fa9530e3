"""Data-parallel training equals training on one process, and the views into its buckets stay."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from world import in_world

import cdgrad

METRICS = ("reweighted:lam=3", "sobolev:lam=0.1", "mean-sobolev:lam=0.2,boundary=periodic")


def network():
    torch.manual_seed(0)
    # No batch norm: its statistics are of a process's own part of the batch.
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(*layers).double()
    model(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    return model


def steps():
    """Three steps of two micro-batches each."""
    return torch.randn(3, 2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def prepare(model, metric, rescale):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    cdgrad.attach(optimizer, model, metric, rescale=rescale)
    return optimizer


def single_process(metric, rescale):
    model = network()
    optimizer = prepare(model, metric, rescale)
    for micro_batches in steps():
        optimizer.zero_grad()
        for batch in micro_batches:
            model(batch).square().mean().backward()
        optimizer.step()
    return model


def check_equals_one_process():
    """With gradients accumulated locally first, and reduced in the last micro-batch."""
    for metric, rescale in [*((metric, "none") for metric in METRICS), (METRICS[1], "norm")]:
        model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
        optimizer = prepare(model, metric, rescale)
        for micro_batches in steps():
            optimizer.zero_grad()
            first, last = (batch.chunk(2)[dist.get_rank()] for batch in micro_batches)
            with model.no_sync():
                model(first).square().mean().backward()
            model(last).square().mean().backward()
            optimizer.step()
        for got, want in zip(model.parameters(), single_process(metric, rescale).parameters(), strict=True):
            assert (got - want).norm() < 1e-10 * want.norm(), metric


def check_bucket_views_stay():
    model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
    optimizer = prepare(model, "sobolev:lam=0.1", "norm")
    for micro_batches in steps():
        optimizer.zero_grad(set_to_none=False)
        model(micro_batches[0]).square().mean().backward()
        grads = [param.grad for param in model.parameters()]
        before = [(grad.data_ptr(), grad.stride(), grad.clone()) for grad in grads]
        assert len({grad.untyped_storage().data_ptr() for grad in grads}) == 1
        optimizer.step()
        for param, grad, (pointer, stride, value) in zip(model.parameters(), grads, before, strict=True):
            assert param.grad is grad
            assert (grad.data_ptr(), grad.stride()) == (pointer, stride)
            # Convolution weights were directed, the rest was left alone.
            assert torch.equal(grad, value) == (grad.ndim < 4)


def test_two_processes():
    in_world(2, check_equals_one_process, check_bucket_views_stay)

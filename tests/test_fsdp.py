"""Fully sharded training equals training on one process; what shards flat is refused."""

import copy
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from world import Traffic, in_worlds

import cdgrad

STEPS = 2  # the second one has a momentum
METRICS = (
    "reweighted:lam=3",
    "sobolev:lam=0.1",
    "mean-sobolev:lam=0.2,boundary=periodic",
    "sobolev:lam=0.1,boundary=periodic",
    "mean-sobolev:lam=0.2",
)


def network():
    """Uneven shards, empty ones on four ranks, groups that ranks cut, a transposed convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.Tanh(),
        nn.Conv2d(7, 6, 3, groups=1),
        nn.Tanh(),
        nn.Conv2d(6, 9, 1, groups=3),
        nn.ConvTranspose2d(9, 4, 2),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(2 * 3 * 3, 3),
    ).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def sharded(model, mesh, **options):
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def own(batch):
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def train(model, metric, part, rescale="none", act=lambda optimizer, handle, backward: None):
    """A few steps on `part` of each batch; `act` runs instead of backward and step if it returns True."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    handle = cdgrad.attach(optimizer, model, metric, rescale=rescale)
    for batch in batches():
        optimizer.zero_grad()

        def backward(batch=batch):
            loss = model(part(batch)).square().mean()
            loss.backward()
            return loss

        if not act(optimizer, handle, backward):
            backward()
            optimizer.step()
    return handle


def assert_equal(model, single):
    for (name, param), want in zip(model.named_parameters(), single.parameters(), strict=True):
        got = param.full_tensor().detach()
        assert (got - want).norm() < 1e-10 * want.norm(), name


def whole(batch):
    return batch


@cache
def on_one_process(metric, rescale):
    """Of no world: the same for all that this process is a rank of."""
    single = network()
    train(single, metric, whole, rescale)
    return single


def check_equals_one_process():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cases = [(metric, "none") for metric in METRICS] + [(metric, "norm") for metric in METRICS[:2]]
    for metric, rescale in cases:
        model = sharded(network(), mesh)
        train(model, metric, own, rescale)
        assert_equal(model, on_one_process(metric, rescale))
    with pytest.raises(AssertionError):
        assert_equal(model, on_one_process("l2", "none"))


def check_hybrid_and_other_axes():
    """Replicated over one mesh dimension, sharded over the other; and sharded along axis 1."""
    if (size := dist.get_world_size()) % 2:
        return
    hybrid = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    single = on_one_process("sobolev:lam=0.1", "norm")
    other = {"shard_placement_fn": lambda param: Shard(int(param.ndim > 1 and param.shape[1] % size == 0))}
    for mesh, options in ((hybrid, {}), (init_device_mesh("cpu", (size,)), other)):
        model = sharded(network(), mesh, **options)
        train(model, "sobolev:lam=0.1", own, "norm")
        assert_equal(model, single)


def check_accumulation_closures_and_apply():
    """A sharded gradient that is added to is another one, although its DTensor is the same object."""
    if (size := dist.get_world_size()) % 2:
        return
    mesh = init_device_mesh("cpu", (size,))

    def accumulate(optimizer, handle, backward):
        backward()
        backward()
        optimizer.step()
        return True

    def closure(optimizer, handle, backward):
        optimizer.step(backward)
        return True

    def apply_then_add_in_closure(optimizer, handle, backward):
        backward()
        handle.apply()
        optimizer.step(backward)
        return True

    def clip(optimizer, handle, backward):
        backward()
        handle.apply()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-3)
        optimizer.step()
        return True

    for act in (accumulate, closure, apply_then_add_in_closure, clip):
        model, single = sharded(network(), mesh), network()
        train(model, "sobolev:lam=0.1", own, act=act)
        train(single, "sobolev:lam=0.1", whole, act=act)
        assert_equal(model, single)


def check_one_collective_per_step():
    mesh = init_device_mesh("cpu", (size := dist.get_world_size(),))
    for rescale, calls in (("none", 1), ("norm", 2)):
        model = sharded(network(), mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        cdgrad.attach(optimizer, model, "sobolev:lam=0.1", rescale=rescale)
        model(own(batches()[0])).sum().backward()
        with Traffic() as traffic:
            optimizer.step()
        assert len(traffic.calls) == (0 if size == 1 else calls)


def check_refusal_names_the_parameter():
    """Channels cut over two mesh dimensions: by tensor parallelism, and by fully_shard on top of it."""
    if dist.get_world_size() < 4:
        return
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = nn.Sequential(nn.Conv2d(2, 8, 3))
    for name, param in list(model[0].named_parameters()):
        param = nn.Parameter(distribute_tensor(param.data, square["tensor"], [Shard(0)]))
        model[0].register_parameter(name, param)
    fully_shard(model, mesh=square["data"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^0.weight of shape \(8, 2, 3, 3\) .*S\(0.*S\(0.*exclude it"):
        cdgrad.attach(optimizer, model, "reweighted:lam=3")
    cdgrad.attach(optimizer, model, "reweighted:lam=3", direction="input")


def check_flat_shards_are_refused():
    # Its import warns, in torch itself, and here no warning is an error.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for use_orig_params in (False, True):
        model = FullyShardedDataParallel(
            copy.deepcopy(network()), use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
        with pytest.raises(ValueError, match=r"FSDP1 flat parameter.*fully_shard"):
            cdgrad.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, "reweighted:lam=3")
    model = network()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"ZeroRedundancyOptimizer assigns each weight.*plain optimizer"):
        cdgrad.attach(optimizer, model, "reweighted:lam=3")


def check_module_to_after_a_step():
    """It swaps the contents of DTensors, and of their gradients, which cdgrad therefore may not refer to."""
    model = sharded(network(), init_device_mesh("cpu", (dist.get_world_size(),)))
    train(model, METRICS[1], own)
    model.to(torch.float32)
    assert model[0].weight.grad.dtype == torch.float32


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def test_one_to_four_ranks():
    in_worlds((1, 2, 3, 4), *CHECKS)


def test_deepspeed_partitions_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.ds_id = 0
    with pytest.raises(ValueError, match=r"^0.weight .*ZeRO stage 3.*fully_shard"):
        cdgrad.attach(optimizer, model, "reweighted:lam=3")
    stage_2 = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})()
    with pytest.raises(ValueError, match=r"DeepSpeedZeroOptimizer updates flat partitions.*fully_shard"):
        cdgrad.attach(stage_2, network(), "reweighted:lam=3")


def test_exchanged_parameters_are_noticed():
    """DeepSpeed's stages 1 and 2 put flat partitions in the place of the parameters of the optimizer."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cdgrad.attach(optimizer, model, "reweighted:lam=3")
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.zeros(100))]
    with pytest.raises(RuntimeError, match=r"no longer holds any.*0\.weight.*ZeRO"):
        optimizer.step()

"""The norms of rescale="norm": the Triton kernel, interpreted, against torch's operations; its launches."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from cdgrad import attach
from cdgrad.ops import graphs
from cdgrad.ops.rescaling import Rescaling

pytest.importorskip("triton")
from cdgrad.ops.triton import launch
from cdgrad.ops.triton.scaled import PIECE

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched, by name, in order, but for one that a device's first plan loads."""
    launch.prepare_captures(torch.device("cpu"))
    names = []
    kernel = launch.named_kernel
    monkeypatch.setattr(launch, "named_kernel", lambda name: names.append(name) or kernel(name))
    return names


def tensors(dtype):
    """Plain, permuted, off alignment, several programs, expanded, with gaps, empty, inf, nan, zero."""
    torch.manual_seed(0)
    yield torch.randn(6, 4, 3, 3).to(dtype)
    yield torch.randn(6, 4, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    yield torch.randn(7, 5).to(dtype).t()
    yield torch.randn(34).to(dtype)[1:].view(3, 11)
    yield torch.randn(2, PIECE + 7).to(dtype)
    yield torch.randn(1, 5).to(dtype).expand(4, 5)
    yield torch.randn(6, 8).to(dtype)[:, ::2]
    yield torch.randn(0, 5).to(dtype)
    yield torch.tensor([[1.0, float("inf")], [2.0, -3.0]]).to(dtype)
    yield torch.tensor([[1.0, float("nan")], [2.0, -3.0]]).to(dtype)
    yield torch.zeros(3, 2).to(dtype)


def norms(count):
    """Old and new ones: ordinary, zero, infinite, not numbers."""
    old = [torch.tensor(0.3 + i, dtype=torch.float64) for i in range(count)]
    new = [torch.tensor(1.7 + i / 3, dtype=torch.float64) for i in range(count)]
    new[2], new[8], old[8], new[9], new[10] = (
        torch.tensor(x, dtype=torch.float64) for x in (0.0, float("inf"), float("inf"), float("nan"), 0.0)
    )
    return old, new


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of inf / inf
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_gives_the_bits_of_torchs_operations(dtype, launches):
    for turn in range(2):
        by_torch, by_kernel = list(tensors(dtype)), list(tensors(dtype))
        old, new = norms(len(by_torch))
        Rescaling(by_torch, "eager").run(by_torch, old, new)
        assert launches == ["scaled"] * turn
        Rescaling(by_kernel, "triton").run(by_kernel, old, new)
        assert launches == ["scaled"] * (turn + 1)
        for got, expected in zip(by_kernel, by_torch, strict=True):
            # The interpreter cuts off where GPUs and torch round to bfloat16.
            ulp = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
            torch.testing.assert_close(got, expected, rtol=ulp, atol=0, equal_nan=True)


def test_scaling_counts_as_a_write():
    grads = [torch.randn(4, 3), torch.randn(6, 8)[:, ::2]]
    before = [grad._version for grad in grads]
    one = [torch.ones((), dtype=torch.float64)] * 2
    Rescaling(grads, "triton").run(grads, one, one)
    assert [grad._version for grad in grads] == [version + 1 for version in before]


def network(dtypes):
    """Convolutions with groups and transposed, of several dtypes; and an optimizer."""
    torch.manual_seed(0)
    layers = [
        layer.to(dtype)
        for dtype in dtypes
        for layer in (nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.ConvTranspose2d(3, 4, 2, bias=False))
    ]
    model = nn.Sequential(*layers)
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("captured", [False, True])
def test_a_rescaled_step_is_two_launches_a_dtype(captured, launches, monkeypatch):
    """Eager and captured; the numbers are those of the plain operator, rescaled in float64."""
    monkeypatch.setattr(graphs, "_kept", set())
    dtypes = [torch.float32, torch.float64]
    results = []
    for rescale in ("none", "norm"):
        model, optimizer = network(dtypes)
        handle = attach(optimizer, model, "sobolev:lam=0.1", rescale=rescale, backend="triton")
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
        for turn in range(2):
            for param, grad in zip(model.parameters(), grads, strict=True):
                param.grad = grad.clone()
            launches.clear()
            if turn and captured:
                with monkeypatch.context() as inside:
                    inside.setattr(launch, "capturing_on", lambda device: True)
                    inside.setattr("cdgrad.ops.triton.scaling.capturing_on", lambda device: True)
                    optimizer.step()
            else:
                optimizer.step()
        kernels = [name for name in launches if name != "write16"]
        assert kernels == ["directed"] * 2 + ["scaled"] * (2 * (rescale == "norm"))
        results.append([param.grad for param in model.parameters()])
        handle.remove()
    for grad, plain, rescaled in zip(grads, *results, strict=True):
        expected = plain.double() * grad.double().norm() / plain.double().norm()
        torch.testing.assert_close(rescaled.double(), expected, rtol=1e-6, atol=1e-9)


def test_a_graph_writes_new_addresses_with_a_kernel_that_is_loaded(launches, monkeypatch):
    """Also where the operator itself launched nothing; what the graph reads is kept."""
    monkeypatch.setattr(launch, "_prepared_for_captures", set())
    kept = []
    monkeypatch.setattr(
        "cdgrad.ops.triton.scaling.keep_until_read", lambda device, arrays: kept.extend(arrays)
    )
    one, half = ([torch.full((), x, dtype=torch.float64)] for x in (1.0, 0.5))
    known, new = torch.randn(4, 3), torch.randn(4, 3)
    rescaling = Rescaling([known], "triton")
    rescaling.run([known], one, half)
    assert launches == ["write16", "scaled"]
    monkeypatch.setattr("cdgrad.ops.triton.scaling.capturing_on", lambda device: True)
    before = new.clone()
    rescaling.run([known], one, half)
    assert launches[2:] == ["scaled"]
    assert len(kept) == 2
    rescaling.run([new], one, half)
    assert launches[3:] == ["write16", "scaled"]
    assert torch.equal(new, 2 * before)


def test_arrays_of_a_few_streams_are_kept(monkeypatch):
    """Programs that make streams of their own would otherwise fill the device."""
    ((_, scaling),) = Rescaling([torch.randn(4, 3)], "triton")._fused
    streams = iter(range(10))
    monkeypatch.setattr(scaling, "_device", torch.device("cuda:0"))
    monkeypatch.setattr(launch, "prepare_captures", lambda device: None)
    monkeypatch.setattr("cdgrad.ops.triton.scaling.stream_handle", lambda device: next(streams))
    monkeypatch.setattr("cdgrad.ops.triton.scaling.capturing_on", lambda device: False)
    for name in ("upload", "upload_integers"):
        monkeypatch.setattr(f"cdgrad.ops.triton.scaling.{name}", lambda array, device: torch.empty(1))
    for _ in range(10):
        scaling._arrays(bytes(8))
    assert [*scaling._on_stream] == [6, 7, 8, 9]


def test_a_capture_before_the_first_step_is_refused(monkeypatch):
    grad = torch.randn(4, 3)
    before = grad.clone()
    monkeypatch.setattr("cdgrad.ops.triton.scaling.capturing_on", lambda device: True)
    one = [torch.ones((), dtype=torch.float64)]
    with pytest.raises(RuntimeError, match="run one step before the capture"):
        Rescaling([grad], "triton").run([grad], one, one)
    assert torch.equal(grad, before)


COMPILE = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from cdgrad.ops.triton.kernels import DTYPES
from cdgrad.ops.triton.scaled import PIECE, scaled
import torch

for dtype in ("float32", "bfloat16"):
    source = ASTSource(
        scaled,
        dict(addresses="*i64", records="*i64", old="*fp64", new="*fp64")
        | dict(DTYPE="constexpr", PIECE="constexpr"),
        constexprs={(4,): DTYPES[getattr(torch, dtype)], (5,): PIECE},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(4)},
    )
    for arch in (80, 90):
        kernel = compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
        print(json.dumps([dtype, arch, kernel.asm["ptx"]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_the_kernel_compiles_with_wide_accesses(tmp_path):
    """Of two dtypes for two architectures, by one process, because its start takes longer than a kernel."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 4
    for dtype, arch, ptx in kernels:
        wide = PIECE // 128 * (4 if dtype == "float32" else 2) // 16  # accesses of 16 bytes in a thread
        for access in ("ld", "st"):
            found = re.findall(rf"{access}\.global\S*\.v4\.b32", ptx)
            assert len(found) >= wide, (dtype, arch, access)

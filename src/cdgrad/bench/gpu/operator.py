"""The operator alone: its error, its time over the floor, and its time on the host."""

# torch types its random numbers and norms in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from cdgrad._torch_private import foreach_mul_
from cdgrad.attachment import attach
from cdgrad.bench.candidates import FLOOR, METRICS
from cdgrad.bench.gpu.setup import Setup, alternating, captured, relative_error
from cdgrad.bench.shapes import NETWORKS, Conv
from cdgrad.metrics import Metric, with_lam
from cdgrad.ops import channel_directed_, eager, prepare
from cdgrad.ops.local import as_channels
from cdgrad.ops.triton import launch

PLAIN = "plain torch operations"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LAMS = (1e-6, 1e-2, 1e3)
_CHANNELS = (2, 33, 512, 2048, 16384)

Items = dict[str, Callable[[], object]]


def parity(setup: Setup) -> Items:
    """By metric and dtype, the largest error relative in norm against float64 in plain torch operations."""
    return {
        f"{metric} {name}": partial(_parity, setup, metric, dtype)
        for metric in setup.metrics
        for name, dtype in _parity_dtypes(setup).items()
    }


def _parity_dtypes(setup: Setup) -> dict[str, torch.dtype]:
    return {"float32": torch.float32} if setup.rehearsal else DTYPES | {"float64": torch.float64}


def parity_gradients(setup: Setup, dtype: torch.dtype) -> list[tuple[Tensor, int]]:
    """Gradients and channel axes: each count of channels contiguous, channels-last and transposed."""
    generator = torch.Generator().manual_seed(0)
    jobs: list[tuple[Tensor, int]] = []
    for n in (6,) if setup.rehearsal else _CHANNELS:
        # A large mean: what is lost in float32 shows against the deviation.
        base = torch.randn(n, 1 if setup.rehearsal else 8, 3, 3, generator=generator) + 3
        last = base.contiguous(memory_format=torch.channels_last)
        jobs += [(base, 0), (last, 0), (base.transpose(0, 1).contiguous(), 1)]
    return [(grad.to(setup.device, dtype), dim) for grad, dim in jobs]


def _parity(setup: Setup, metric: Metric, dtype: torch.dtype) -> dict[str, Any]:
    worst = 0.0
    jobs = parity_gradients(setup, dtype)
    dims = [dim for _, dim in jobs]
    for lam in _LAMS[: 1 if setup.rehearsal else None]:
        changed = with_lam(metric, lam)
        grads = [grad.clone(memory_format=torch.preserve_format) for grad, _ in jobs]
        channel_directed_(grads, changed, dims, backend="triton")
        for got, (grad, dim) in zip(grads, jobs, strict=True):
            exact = eager.directed(as_channels(grad.double(), dim, 1), changed)
            worst = max(worst, relative_error(as_channels(got.double(), dim, 1), exact))
    return {"error": worst}


def floor(setup: Setup) -> Items:
    """By network, dtype and memory format, the time of each metric over an in-place multiplication."""
    cases = {
        name: partial(_over_floor, setup, layers, dtype, layout)
        for name, layers, dtype, layout in floor_cases(setup)
    }
    first, layers, *form = next(floor_cases(setup))
    # As graphs: launched one by one, the small kernels would wait for the host.
    plain = partial(_over_floor, setup, layers, *form, backend="eager")
    return {first: cases.pop(first), f"{first}, {PLAIN}": plain, **cases}


def floor_cases(setup: Setup) -> Iterator[tuple[str, list[Conv], torch.dtype, torch.memory_format]]:
    """The networks, those first that say most."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    wide = ("wide-16384", "wide-1024")
    networks = ("resnet50", "resnet18-imagenet", "mobilenet-v2", "densenet121", *wide)
    for network in networks[: 1 if setup.rehearsal else None]:
        for name, dtype in DTYPES.items():
            for layout in (contiguous, last) if network == "resnet50" else (contiguous,):
                title = f"{network} {name}" + (" channels-last" if layout == last else "")
                yield title, setup.layers(NETWORKS[network]()), dtype, layout


def gradients(
    setup: Setup, layers: list[Conv], dtype: torch.dtype, layout: torch.memory_format
) -> list[Tensor]:
    """Noise in the shapes of the layers' weights."""
    torch.manual_seed(0)
    return [layer.gradient().to(setup.device, dtype).contiguous(memory_format=layout) for layer in layers]


def _over_floor(
    setup: Setup, layers: list[Conv], dtype: torch.dtype, layout: torch.memory_format, backend: str = "triton"
) -> dict[str, Any]:
    grads = gradients(setup, layers, dtype, layout)
    groups = [layer.groups for layer in layers]
    candidates: Items = {FLOOR: partial(foreach_mul_, grads, 1.0)}
    # The second of two metrics of one family would find its kernel's instructions in the GPU's caches: on an
    # H100 it took 7 to 11 microseconds less. In training, other kernels are executed between two steps.
    for metric in alternating(setup.metrics):
        run = partial(prepare(grads, metric, 0, groups, backend=backend).run, grads)
        candidates[str(metric)] = run if backend == "triton" else captured(setup, run)
    times = setup.interleaved(candidates)
    size = sum(grad.nbytes for grad in grads)
    rows = {
        name: {"ms": ms, "over_floor": ms / times[FLOOR], "bytes_per_second": 2e3 * size / ms}
        for name, ms in times.items()
    }
    return {"tensors": len(grads), "bytes": size, "times": rows}


def host(setup: Setup) -> Items:
    """Microseconds of the calling thread for ResNet-50's gradients, hook, checks and launch included.

    A rehearsal launches nothing: its times, all but the launch's, are those of its machine.
    """
    return {str(metric): partial(_host, setup, metric) for metric in METRICS}


def _host(setup: Setup, metric: Metric) -> dict[str, float]:
    with _without_launches() if setup.rehearsal else nullcontext():
        return _host_times(setup, metric)


@contextmanager
def _without_launches() -> Generator[None]:
    kernel = launch.named_kernel
    launch.named_kernel = _NoKernel
    try:
        yield
    finally:
        launch.named_kernel = kernel


class _NoKernel:
    """A stub with the interface of a Triton kernel."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


def _host_times(setup: Setup, metric: Metric) -> dict[str, float]:
    layers = NETWORKS["resnet50"]()
    model = nn.ModuleList(
        nn.Conv2d(each.into, each.out, each.kernel, groups=each.groups, bias=False) for each in layers
    ).to(setup.device)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    optimizer = _Nothing(parameters, {})
    times = {"optimizer.step, not attached": _host_time(setup, optimizer.step)}
    prepared = prepare(grads, metric, backend="triton")
    with attached(optimizer, model, metric):
        times["optimizer.step, attached"] = _host_time(setup, optimizer.step)
    times["prepared.run"] = _host_time(setup, partial(prepared.run, grads))
    times["channel_directed_"] = _host_time(
        setup, partial(channel_directed_, grads, metric, backend="triton")
    )
    return times


@contextmanager
def attached(optimizer: torch.optim.Optimizer, model: nn.Module, metric: Metric | str) -> Generator[None]:
    """Attach for a while."""
    handle = attach(optimizer, model, metric, backend="triton")
    try:
        yield
    finally:
        handle.remove()


class _Nothing(torch.optim.Optimizer):
    """An optimizer whose step does nothing but call its hooks."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run no update."""


def _host_time(setup: Setup, call: Callable[[], object]) -> float:
    """Median microseconds; the queue is empty, so nothing waits for the device."""
    samples: list[float] = []
    call()
    for _ in range(100):
        setup.synchronize()
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    return round(median(samples), 1)

"""What the operator costs on a GPU: one self-contained run, a few minutes, results as JSON.

    python benchmarks/gpu.py --out results.json
    python benchmarks/gpu.py --rehearse          # tiny, on the CPU, in Triton's interpreter: no times

Every time is relative to a floor taken in the same run: an in-place `torch._foreach_mul_` on the same
tensors, the two interleaved, the L2 cache overwritten before each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

METRICS = [
    "reweighted:lam=3",
    "sobolev:lam=0.01",
    "sobolev:lam=0.01,boundary=periodic",
    "mean-sobolev:lam=0.05",
    "mean-sobolev:lam=0.05,boundary=periodic",
]
LAMS = (1e-6, 1e-2, 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write; printed in any case")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, with tiny tensors")
    arguments = parser.parse_args()
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import torch

    if not arguments.rehearse and not torch.cuda.is_available():
        parser.exit(1, "no CUDA device is at hand; --rehearse runs the script on the CPU\n")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    started = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(device)}
    sections: dict[str, Callable[[Any], Any]] = {
        "parity": parity,
        "resnet50": over_floor,
        "host": host_time,
        "graph": graph_capture,
        "training_step": training_step,
    }
    for name, section in sections.items():
        try:
            results[name] = section(device)
        except Exception as error:  # one broken section must not cost the others a rented machine
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(results[name], indent=2), flush=True)
    results["seconds"] = round(time.perf_counter() - started)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name in sections if "error" in results[name]]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def machine(device: Any) -> dict[str, Any]:
    import torch
    import triton

    import cdgrad

    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": properties.name if properties else "cpu, interpreted: rehearsal, not a measurement",
        "multiprocessors": properties.multi_processor_count if properties else None,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cdgrad": cdgrad.__version__,
    }


def resnet50_shapes(device: Any) -> list[tuple[int, ...]]:
    """The 53 convolutions; a 16th of the channels in a rehearsal."""
    shapes, width_in = [(64, 3, 7, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, width_in, 1, 1))
            width_in = 4 * width
    if device.type == "cuda":
        return shapes
    return [(max(o // 16, 1), max(i // 64, 1), *kernel) for o, i, *kernel in shapes[:3]]


def parity(device: Any) -> dict[str, Any]:
    """Worst relative error in norm against eager float64, over lam, channels, layouts and dtypes."""
    import torch

    from cdgrad import channel_directed, channel_directed_, parse_metric

    generator = torch.Generator().manual_seed(0)
    sizes, wide = ((2, 33, 512, 2048, 16384), 8) if device.type == "cuda" else ((6,), 1)
    worst: dict[str, dict[str, float]] = {}
    for text in METRICS:
        for lam in LAMS:
            metric = type(parse_metric(text))(**{**vars(parse_metric(text)), "lam": lam})
            for n in sizes:
                for dtype in (torch.float32, torch.float64, torch.bfloat16):
                    base = torch.randn(n, wide, 3, 3, generator=generator)
                    for x, dim in (
                        (base, 0),
                        (base.to(memory_format=torch.channels_last), 0),
                        (base.transpose(0, 1).contiguous(), 1),
                    ):
                        grad = x.to(device, dtype)
                        expected = channel_directed(grad.double(), metric, dim)
                        channel_directed_([grad], metric, dim, backend="triton")
                        error = (grad.double() - expected).norm() / expected.norm()
                        row = worst.setdefault(
                            f"{metric.family} {getattr(metric, 'boundary', '')}".strip(), {}
                        )
                        row[str(dtype)] = max(row.get(str(dtype), 0.0), error.item())
    ok = all(row["torch.float32"] <= 1e-6 for row in worst.values())
    return {"channels": sizes, "lams": LAMS, "relative_error": worst, "float32_within_1e-6": ok}


def over_floor(device: Any) -> dict[str, Any]:
    """Time over the floor, cold, medians; float32 and bfloat16, contiguous and channels-last."""
    import torch

    from cdgrad import channel_directed_, parse_metric

    rows: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            grads = [
                torch.randn(shape, device=device).to(dtype).to(memory_format=layout)
                for shape in resnet50_shapes(device)
            ]
            size = sum(grad.numel() * grad.element_size() for grad in grads)
            candidates: dict[str, Callable[[], Any]] = {"floor": partial(torch._foreach_mul_, grads, 1.0)}
            for text in METRICS:
                for backend in ("triton", "eager"):
                    if backend == "eager" and (dtype != torch.float32 or layout != torch.contiguous_format):
                        continue
                    candidates[f"{text} {backend}"] = partial(
                        channel_directed_, grads, parse_metric(text), backend=backend
                    )
            times = interleaved(candidates, device)
            rows[f"{dtype} {layout}"] = {
                name: {
                    "ms": round(ms, 4),
                    "over_floor": round(ms / times["floor"], 2),
                    "GB/s": round(2 * size / ms / 1e6),
                }
                for name, ms in times.items()
            }
    return rows


def host_time(device: Any) -> dict[str, float]:
    """Microseconds of the calling thread per step, the queue being empty: nothing waits for the device."""
    import torch

    from cdgrad import channel_directed_, parse_metric
    from cdgrad.ops.triton import launch as gpu

    grads = [torch.randn(shape, device=device) for shape in resnet50_shapes(device)]
    rows: dict[str, float] = {}
    for text in METRICS:
        metric = parse_metric(text)
        calls = {
            "channel_directed_": partial(channel_directed_, grads, metric, backend="triton"),
            "launch": partial(gpu.directed_, [(grad, 0, 1) for grad in grads], metric),
        }
        for name, call in calls.items():
            samples: list[float] = []
            for _ in range(rounds(device, 100)):
                synchronize(device)
                start = time.perf_counter()
                call()
                samples.append((time.perf_counter() - start) * 1e6)
            rows[f"{text} {name}"] = round(statistics.median(samples), 1)
    return rows


def graph_capture(device: Any) -> dict[str, Any]:
    """A captured backward pass and operator against the same, eagerly; gradients in the graph's memory."""
    import torch

    from cdgrad import channel_directed_, parse_metric

    if device.type != "cuda":
        return {"skipped": "graphs need a GPU"}
    rows: dict[str, Any] = {}
    for text in METRICS:
        metric = parse_metric(text)
        weights = [torch.randn(40 + i, 6, 3, 3, device=device, requires_grad=True) for i in range(20)]

        def step(weights: list[Any] = weights, metric: Any = metric) -> None:
            sum(weight.sin().sum() for weight in weights).backward()
            channel_directed_([weight.grad for weight in weights], metric, backend="triton")

        step()
        expected = [weight.grad.clone() for weight in weights]
        torch.cuda.synchronize()
        for weight in weights:
            weight.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for weight in weights:
            weight.grad.zero_()
        same = True
        for _ in range(3):
            graph.replay()
            torch.cuda.synchronize()
            same &= all(torch.equal(w.grad, e) for w, e in zip(weights, expected, strict=True))
        rows[text] = {"replays_equal_eager": same}
    fresh = [torch.randn(77, 3, device=device)]
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            channel_directed_(fresh, METRICS[1], backend="triton")
        rows["unprepared"] = "captured without refusal"
    except RuntimeError as error:
        rows["unprepared"] = f"refused: {error}"
    return rows


def training_step(device: Any) -> dict[str, Any]:
    """ResNet-18, 32 x 32, batch 128, bfloat16, channels-last, compiled: the step's time, with and without."""
    import torch

    from cdgrad import attach
    from cdgrad.study.models.resnet import ResNet18

    batch, width = (128, 64) if device.type == "cuda" else (2, 4)
    torch.manual_seed(0)
    model = ResNet18((3, 32, 32), 10, width).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def loss() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return torch.nn.functional.cross_entropy(model(images), labels)

    compute = torch.compile(loss) if device.type == "cuda" else loss

    def step() -> None:
        optimizer.zero_grad()
        compute().backward()
        optimizer.step()

    handle = attach(optimizer, model, METRICS[0])

    def run(metric: str | None) -> None:
        handle.enabled = metric is not None
        if metric:
            handle.metric = metric
        step()

    candidates = {"without": partial(run, None), **{text: partial(run, text) for text in METRICS}}
    times = interleaved(candidates, device, cold=False)
    return {
        name: {"ms": round(ms, 3), "longer_percent": round(100 * (ms / times["without"] - 1), 2)}
        for name, ms in times.items()
    }


def interleaved(candidates: dict[str, Callable[[], Any]], device: Any, cold: bool = True) -> dict[str, float]:
    """Median milliseconds of each, all taking turns; cold: after writing more than any L2 cache holds."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(rounds(device, 3)):
            call()
    flush = buffer(device) if cold else None
    for _ in range(rounds(device, 100)):
        for name, call in candidates.items():
            if flush is not None:
                flush.zero_()
            samples[name].append(elapsed(call, device))
    return {name: statistics.median(times) for name, times in samples.items()}


def elapsed(call: Callable[[], Any], device: Any) -> float:
    """Milliseconds on the device, between two events; on the CPU by the clock."""
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The host gets ahead, so that the events enclose the kernels and not the launching of them.
    torch.cuda._sleep(2_000_000)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def buffer(device: Any) -> Any:
    import torch

    return torch.empty(2**28 if device.type == "cuda" else 2**10, dtype=torch.int8, device=device)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def rounds(device: Any, count: int) -> int:
    return count if device.type == "cuda" else 1


if __name__ == "__main__":
    main()

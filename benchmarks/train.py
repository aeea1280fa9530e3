"""Measure what the study's training loop costs over a bare one: python benchmarks/train.py [--device cuda]

Both train the same network on the same images with the same optimizer, and every epoch ends with the
error on a few validation images. The bare loop is written as one writes it by hand: images normalized
in advance, the loss summed and nothing else measured. `cdgrad.study.train` also counts the training
errors, sets the learning rate, normalizes every batch, and measures weight norm and alignment once an
epoch. Counted are the training images of all epochs but the first over the time from the end of the
first epoch to the end of the last: building and loading are not in it, all else is. The loops alternate in
rounds; the rate of each is the median over the rounds, and so is the ratio of the two of a round. On a
CPU, where both have one thread, the ratio of the CPU times is recorded, too, which other processes on the
machine disturb less.
Writes results/train.json, or results/train-gpu.json, beside this file.
"""

import argparse
import json
import platform
import statistics
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cdgrad import attach
from cdgrad.study import data, models
from cdgrad.study.data.cache import Arrays, Decoded, Description
from cdgrad.study.records.environment import environment
from cdgrad.study.spec import parse
from cdgrad.study.train.loop import train

SPEC = """
baseline = "none"
seeds = 1
evaluate = "validation"
optimizer = {{ name = "torch.optim:SGD", lr = 0.05, momentum = 0.9, weight_decay = 5e-4 }}
arms.none.metric = "none"
arms.reweighted.metric = "reweighted:lam=3"
{cell}
"""
CPU_CASES = {
    "small-cnn, digits 8x8, batch 32": """
        task = { data = "digits", train = 1600, validation = 64 }
        model = { name = "small-cnn" }
        schedule = { epochs = 6, batch = 32 }""",
    "resnet8, 32x32, batch 64": """
        task = { data = "noise", train = 768, validation = 64 }
        model = { name = "resnet8" }
        schedule = { epochs = 3, batch = 64 }""",
}
GPU_CASES = {
    "resnet18, 32x32, batch 128, bfloat16, compiled, channels last": """
        task = { data = "noise", train = 25600, validation = 1000 }
        model = { name = "resnet18" }
        schedule.epochs = 6
        schedule.batch = 128
        schedule.precision = "bfloat16"
        schedule.compile = true
        schedule.channels_last = true""",
    "resnet8, 32x32, batch 128": """
        task = { data = "noise", train = 25600, validation = 1000 }
        model = { name = "resnet8" }
        schedule = { epochs = 6, batch = 128 }""",
}


@lru_cache(maxsize=1)
def noise():
    """Images in the shape of CIFAR's: what is in them does not matter to the time."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (30000, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 30000))
    return Decoded(Arrays(pixels, labels), None, Description({"train": "train"}, 10))


def bare(setting, on_epoch, device):
    """A training loop as written by hand."""
    task, network, schedule, base = setting.tables()
    torch.manual_seed(0)
    parts = data.load(task, 0)
    layout = torch.channels_last if schedule.channels_last else torch.contiguous_format
    images = parts.train.images().to(device).contiguous(memory_format=layout)
    labels = parts.train.labels.to(device)
    held_out = parts.validation.images().to(device).contiguous(memory_format=layout)
    answers = parts.validation.labels.to(device)
    model = models.build(network.name, parts.image_shape, parts.classes, network.arguments)
    model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]  torch types only tensors so
    optimizer = torch.optim.SGD(model.parameters(), lr=base.lr, **base.arguments)
    if setting.metric != "none":
        attach(optimizer, model, setting.metric)
    if schedule.compile:
        model.compile()
    steps = -(-len(labels) // schedule.batch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=schedule.epochs * steps)
    half = torch.autocast(device, torch.bfloat16, enabled=schedule.precision == "bfloat16")
    for epoch in range(1, schedule.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(labels)).split(schedule.batch):
            rows = rows.to(device)
            optimizer.zero_grad()
            with half:
                loss = cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(rows)
        model.eval()
        with torch.no_grad(), half:
            wrong = (model(held_out).argmax(1) != answers).sum()
        on_epoch(epoch, {"loss": total.item() / len(labels), "validation_error": wrong.item()})


def study(setting, on_epoch, device):
    train(setting, 0, on_epoch, device=device)


def rates(loop, setting, device):
    """Training images per second, and per second of this process on the CPU, after the first epoch."""
    ends = []
    loop(setting, lambda *_: ends.append((time.perf_counter(), time.process_time())), device)
    images = setting.task.train * (len(ends) - 1)
    return tuple(images / (last - first) for first, last in zip(ends[0], ends[-1], strict=True))


def row(case, arm, setting, device, rounds):
    measured = {bare: [], study: []}
    for loop in measured:
        rates(loop, setting, device)  # the first of each pays for what is cached
    for completed in range(rounds):
        for loop in list(measured)[:: 1 if completed % 2 else -1]:
            measured[loop].append(rates(loop, setting, device))
    ratios = [
        [s / b for s, b in zip(*pair, strict=True)]
        for pair in zip(measured[study], measured[bare], strict=True)
    ]
    wall, cpu_time = (sorted(ratio) for ratio in zip(*ratios, strict=True))
    measurement = {
        "case": case,
        "arm": arm,
        "bare_images_per_second": round(statistics.median(r for r, _ in measured[bare]), 1),
        "study_images_per_second": round(statistics.median(r for r, _ in measured[study]), 1),
        "ratio": round(statistics.median(wall), 4),
        "ratios": [round(r, 4) for r in wall],
    }
    if device == "cpu":
        measurement |= {
            "cpu_time_ratio": round(statistics.median(cpu_time), 4),
            "cpu_time_ratios": [round(r, 4) for r in cpu_time],
        }
    print(json.dumps(measurement), flush=True)
    return measurement


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data.SOURCES["noise"] = noise
    gpu = options.device != "cpu"
    rows = []
    for case, cell in (GPU_CASES if gpu else CPU_CASES).items():
        spec = parse(SPEC.format(cell="\n".join(map(str.strip, cell.splitlines()))), "benchmark")
        for arm in spec.arms:
            rows += [row(case, arm, spec.setting("", arm), options.device, options.rounds)]
    record = {
        "what": "training images per second of cdgrad.study.train over those of a bare loop, medians",
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(options.device) if gpu else environment()["cpu"],
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rows": rows,
    }
    out = Path(__file__).parent / "results" / ("train-gpu.json" if gpu else "train.json")
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

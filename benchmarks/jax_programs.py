"""Compiles the JAX operator for a GPU without one, and records the kernels and their memory traffic.

    pip install --target FOLDER --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION  # that of jax
    PYTHONPATH=FOLDER JAX_PLATFORMS=cpu python benchmarks/jax_programs.py [--out FILE.json]

The gradients are those of the JAX rows of the GPU benchmark, 73 MB. The traffic is the bytes of all arrays
that the kernels read and write, each array whole, over those of multiplying the gradients by a number. It
says nothing of caches, of what arithmetic and launches cost, or of the time.
"""

# jax types its arrays, but few of its functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
from jax.experimental import topologies

from cdgrad.bench.candidates import METRICS
from cdgrad.bench.gpu import jax_process
from cdgrad.bench.gpu.setup import alternating

# What XLA asks of a device: the limits of an H100 SXM, from its data sheet and CUDA's table of capabilities.
TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
}
"""
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)")
NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jax_programs.json")
    out: Path = parser.parse_args().out
    floor = 2 * sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(_shapes()))
    rows: dict[str, dict[str, float]] = {}
    for name in (jax_process.FLOOR, *map(str, alternating(METRICS))):
        traffic = list(kernels(compiled(name)))
        rows[name] = {"kernels": len(traffic), "traffic_over_floor": round(sum(traffic) / floor, 2)}
        print(name, rows[name], flush=True)
    record = {"jax": jax.__version__, "target": "sm_90", "megabytes": floor // 2 / 1e6, "programs": rows}
    out.write_text(json.dumps(record, indent=1) + "\n")


def compiled(name: str) -> str:
    """The optimized program of a metric, or of the floor, as text."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=TARGET
    )
    mesh = topologies.make_mesh(topology, (1,), ("one",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    # The operator asks where it runs.
    with patch("jax.default_backend", lambda: "gpu"):
        program = jax.jit(jax_process.operation(name), in_shardings=place).lower(_shapes())
        return program.compile().as_text() or ""


def _shapes() -> Any:
    return jax.eval_shape(partial(jax_process.gradients, rehearsal=False))


def kernels(program: str) -> Iterator[int]:
    """Of each kernel, the bytes of the arrays that it reads and writes."""
    sizes: dict[str, int] = {}
    for line in program[program.index("\nENTRY ") :].splitlines()[2:]:
        if not (found := INSTRUCTION.match(line)):
            break
        name, shape, operation, operands = found.groups()
        sizes[name] = _bytes(shape)
        if operation not in NO_KERNEL:
            yield sizes[name] + sum(sizes[each] for each in re.findall(r"%([\w.-]+)", operands))


def _bytes(shape: str) -> int:
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES[dtype] * prod(int(size) for size in sizes.split(",") if size) for dtype, sizes in parts)


if __name__ == "__main__":
    main()
